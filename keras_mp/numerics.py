"""Judge and unscale gradients: are all finite, how large, divided by the scale."""

import collections
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from keras import ops

from keras_mp import dtypes, kinds, private, stacks


def all_finite(gradients: Iterable[Any]) -> Any:
    """Return a scalar bool tensor: no gradient holds an inf or a NaN.

    Reads every number once: a sum is finite only if all of its terms are. Numbers so
    large that their sum overflows float32, beyond 1e30 even in the largest models,
    count as not finite too; their squares and norms would overflow in any optimizer.

    Args:
        gradients: List of float tensors of any shape, sparse gradients and None.

    Does not synchronise with the device.
    """
    parts = kinds.dense_parts(gradients)
    if private.tracing.in_xla():
        sums = [_sum_by_product(part) for part in _added_up(parts)]
    else:
        sums = [_sum(stack) for _, stack in stacks.small_ones_stacked(parts)]
    return ops.isfinite(ops.sum(ops.stack([ops.convert_to_tensor(0.0), *sums])))


def every_finite(gradients: Iterable[Any]) -> Any:
    """Return what `all_finite` does, exactly: each number is looked at by itself.

    It takes several times as long, and temporaries of a quarter of the gradients' size.
    """
    finite = [ops.all(ops.isfinite(part)) for part in kinds.dense_parts(gradients)]
    return ops.all(ops.stack(finite)) if finite else ops.convert_to_tensor(True)


def each_finite(piles: Sequence[stacks.Pile]) -> list[Any]:
    """Return for each tensor whether no number in it is an inf or a NaN, exactly.

    Args:
        piles: The tensors, as of `stacks.small_ones_stacked`.

    Returns:
        A list of scalar bool tensors, in the order of the tensors' indices.

    Does not synchronise with the device.
    """
    finite = {}
    for indices, stack in piles:
        rows = ops.reshape(stack, (len(indices), -1))
        each = ops.unstack(ops.all(ops.isfinite(rows), axis=1))
        finite.update(zip(indices, each, strict=True))
    return [finite[index] for index in range(len(finite))]


def _added_up(parts):
    """Return ``parts``, the small ones of one shape added up in float32.

    By twos, so that XLA makes few loops of it. It would make one for each part of a
    stack. Outside XLA, TensorFlow makes one operation of many additions, and under a
    strategy may give it a temporary variable that two replicas create under one name.
    """
    groups = collections.defaultdict(list)
    for index, part in enumerate(parts):
        small = stacks.has_at_most(part, 2**16)
        if small:
            part = _at_least_float32(part)
        groups[(tuple(part.shape), part.dtype) if small else index].append(part)
    return list(map(_total, groups.values()))


def _total(parts):
    while len(parts) > 1:
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        parts = [a if b is None else ops.add(a, b) for a, b in pairs]
    return parts[0]


def _sum(part):
    """Return a finite scalar float32 tensor if ``part`` and its sum in float32 are."""
    if stacks.is_slow_to_cast(part):
        return _sum_by_product(part)  # reads half of what its float32 would be
    return ops.cast(ops.sum(_at_least_float32(part)), "float32")


def _sum_by_product(part):
    """Return 0 as a scalar float32 tensor; NaN if a number in ``part`` is not finite.

    On a CPU, XLA takes a product with a column of zeros several times as fast as a sum.
    """
    columns = part.shape[-1] if len(part.shape) else 1
    if not columns:
        return ops.convert_to_tensor(0.0)
    rows = ops.reshape(part, (-1, columns))
    zeros = ops.zeros((columns, 1), part.dtype)
    return ops.cast(ops.sum(ops.matmul(rows, zeros)), "float32")


def _at_least_float32(tensor):
    """Return ``tensor`` in a dtype in which its sum does not overflow."""
    return ops.cast(tensor, "float32") if dtypes.is_low(tensor) else tensor


def norm(gradients: Iterable[Any]) -> Any:
    """Return the Euclidean norm of all numbers in ``gradients``, a float32 scalar.

    inf if their squares overflow float32. Rows that a sparse gradient holds twice are
    not added up, as in Keras's ``global_clipnorm``.

    Does not synchronise with the device.
    """
    parts = kinds.dense_parts(gradients)
    if not private.tracing.in_xla():
        parts = [stack for _, stack in stacks.small_ones_stacked(parts)]
    squares = [ops.sum(ops.square(ops.cast(part, "float32"))) for part in parts]
    return ops.sqrt(ops.sum(ops.stack([ops.convert_to_tensor(0.0), *squares])))


def largest(gradients: Iterable[Any]) -> Any:
    """Return the largest absolute value in ``gradients`` as a float32 scalar tensor.

    0 where there is no gradient; inf or NaN, where one holds either.
    """
    sizes = [_largest(part) for part in kinds.dense_parts(gradients)]
    return functools.reduce(ops.maximum, sizes, ops.convert_to_tensor(0.0))


def _largest(part):
    highest, lowest = ops.max(part, initial=0.0), ops.min(part, initial=0.0)
    return ops.cast(ops.maximum(highest, ops.negative(lowest)), "float32")


def inverse(scale: Any) -> Any:
    """Return 1 over ``scale``, a scalar tensor or variable, as a float32 tensor.

    A product is several times as fast as a division, and as exact for a scale that is
    a power of two.
    """
    return ops.divide(1.0, ops.cast(scale, "float32"))


def unscale(gradient: Any, scale: Any) -> Any:
    """Return ``gradient`` divided by ``scale``, in the gradient's dtype.

    Args:
        gradient: Float tensor, sparse gradient or None.
        scale: Scalar float32 tensor or variable; None for 1.
    """
    return gradient if scale is None else rescale(gradient, inverse(scale))


def unscale_all(
    gradients: Sequence[Any], variables: Sequence[Any], scale: Any
) -> list[Any]:
    """Return a list of ``gradients`` divided by ``scale``, as of `unscale`.

    "Gradients" that are the next values of their variables stay as they are.
    """
    return [
        gradient if kinds.overwrites(variable) else unscale(gradient, scale)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def rescale(gradient: Any, scale: Any) -> Any:
    """Return ``gradient`` times ``scale``, in the gradient's dtype; None stays None."""
    if gradient is None:
        return None
    # Not in float16, where a scale of 2**16 is inf.
    return kinds.map_values(
        lambda v: ops.cast(ops.multiply(v, scale), v.dtype), gradient
    )
