"""Sums of gradients over the replicas, each of which crosses the network once."""

import functools
import math

from keras import ops

from keras_mp import dtypes, kinds, stacks
from keras_mp.distribute.devices import gather, replicas


def sum_over_replicas(gradients, overwrites, wire_dtype):
    """Return ``gradients`` summed over the replicas. Called in each replica.

    Args:
        gradients: List of tensors, sparse gradients and None, which stays None.
        overwrites: For each, whether it is a value that overwrites its variable
            (float8's scaling factors): the largest counts, not the sum.
        wire_dtype: The dtype in which they are summed, or None for their own.
    """
    if replicas() == 1:
        return gradients
    summed = [
        gradient is not None and not overwrites
        for gradient, overwrites in zip(gradients, overwrites, strict=True)
    ]
    parts = [gradient for gradient, sums in zip(gradients, summed, strict=True) if sums]
    if parts:
        parts = stacks.map_stacked(functools.partial(_sums, wire_dtype), parts)
    totals = iter(parts)
    return [
        next(totals) if sums else _largest_of_all(gradient)
        for gradient, sums in zip(gradients, summed, strict=True)
    ]


def _sums(wire_dtype, parts):
    """Sum each of ``parts`` over the replicas, in ``wire_dtype`` if it is narrower.

    There the sum cannot overflow: every replica's part is first divided by a power of
    two, exactly, that is at least the number of replicas.
    """
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    headroom = 2.0 ** math.ceil(math.log2(context.num_replicas_in_sync))
    sent = [_narrowed(part, wire_dtype, headroom) for part in parts]
    received = context.all_reduce(tf.distribute.ReduceOp.SUM, sent)
    return [
        _widened(total, part, headroom)
        for total, part in zip(received, parts, strict=True)
    ]


def _narrowed(part, dtype, headroom):
    """Return ``part`` over ``headroom`` in ``dtype``, if that is narrower."""
    if dtype is None or not _can_be_narrowed(part, dtype):
        return part
    return kinds.map_values(lambda v: ops.cast(v / headroom, dtype), part)


def _can_be_narrowed(part, dtype):
    if kinds.is_sparse(part) and dtype == "bfloat16":
        return False  # sparse gradients are gathered: TensorFlow has no such kernel
    return dtypes.dtype_of(part) in ("float32", "float64")


def _widened(total, part, headroom):
    """Return the sum in the dtype of ``part``, times ``headroom`` if that divided."""
    if total.dtype == part.dtype:
        return total
    return kinds.map_values(lambda v: ops.cast(v, part.dtype) * headroom, total)


def _largest_of_all(value):
    """Return the elementwise maximum over the replicas. Called in a replica."""
    return None if value is None else ops.max(gather(value), axis=0)
