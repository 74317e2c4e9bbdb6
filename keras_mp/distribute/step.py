"""One optimizer step across replicas: aggregate, judge once, commit or skip.

Under a strategy, gradients are aggregated first and judged afterwards, so that every
replica reaches the same verdict, and they cross the network once. All branches are
taken where the replicas meet, in ``tf.distribute``'s cross-replica context: a branch
taken inside a replica may hold no ``merge_call``, which Keras's optimizers make.

``each`` stands for the replicas throughout: ``each(function, *arguments)`` calls
``function`` once per replica, in its context and with its part of the arguments. On one
device it is a plain call.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import keras
from keras import ops

from keras_mp import kinds, numerics, private, stacks
from keras_mp.scaling import Verdict


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step does with gradients; called with lists that match the variables.

    Attributes:
        judge: ``judge(gradients) -> Verdict``.
        commit: ``commit(each, gradients)``; called once if the verdict is good, with
            aggregated gradients and a way to reach each replica.
        masks: Whether ``commit(each, gradients, finite)`` may be called in any case,
            and does nothing if the scalar ``finite`` is false.
        advance: ``advance(verdict)``; called once for all replicas, in any case.
        overwrites: For each gradient, whether it is a value that overwrites its
            variable (float8's scaling factors): the largest counts, not the sum.
        count: ``count(overflowed)``, or None; called once in a bad step, with the bool
            vector of shape (replicas,) that says whose own gradients were not finite.
        window: A `keras_mp.accumulation.Window`, or None to update in every step.
        aggregate: Whether gradients are still to be summed over the replicas.
        wire_dtype: The dtype in which they are summed, or None for their own.
    """

    judge: Callable
    commit: Callable
    advance: Callable
    overwrites: list
    count: Callable | None = None
    masks: bool = False
    window: object = None
    aggregate: bool = True
    wire_dtype: str | None = None


def has_strategy():
    """Return whether this code runs under a ``tf.distribute`` strategy's scope."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def replicas():
    """Return over how many replicas, on all machines, this scope's variables go."""
    if not has_strategy():
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


@private.tracing.as_written
def run_step(step, gradients, state):
    """Run ``step`` with this replica's ``gradients``, not yet aggregated.

    Args:
        step: A `Step`.
        gradients: List of tensors, sparse gradients and None.
        state: A Keras variable of the optimizer, to know where it was created.

    Raises:
        ValueError: Called outside a replica's context; for an optimizer that was
            created outside the strategy's scope; with a window under a strategy
            whose replicas share one copy of each variable; or in a loop compiled with
            XLA for several devices.
    """
    if not has_strategy():
        return _run(_here, step, gradients)
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        raise ValueError(
            "LossScaleOptimizer.apply() must be called in a replica context. "
            "Call it inside the function given to `strategy.run(...)`."
        )
    _check_variables(step, state.value)
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        return _run(_here, step, gradients)
    _check_compiler()

    def merged(strategy, gradients):
        def each(function, *arguments):
            return strategy.extended.call_for_each_replica(function, args=arguments)

        _run(each, step, gradients)

    tf.distribute.get_replica_context().merge_call(merged, args=(gradients,))


def _check_variables(step, state):
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if not strategy.extended.variable_created_in_scope(state):
        raise ValueError(
            "LossScaleOptimizer.apply() was called under a tf.distribute strategy "
            "that the optimizer was not created under, so that its replicas have no "
            "variables of their own. Create the optimizer, and the model, inside "
            "`with strategy.scope():`."
        )
    if step.window is not None and share_variables(state):
        raise ValueError(
            "LossScaleOptimizer cannot accumulate gradients under a "
            f"{type(strategy).__name__}, whose replicas share one copy of each "
            "variable: each needs a sum of its own. Use MirroredStrategy, or leave "
            "gradient_accumulation_steps out."
        )


def share_variables(variable):
    """Return whether all replicas use one copy of a variable created in this scope."""
    if not has_strategy():
        return False
    import tensorflow as tf

    devices = tf.distribute.get_strategy().extended.worker_devices
    return len(copies_of(variable)) < len(devices)


def copies_of(variable):
    """Return the copies of a variable of this scope that this machine's replicas have.

    Reading the variable itself gives the first one, or what all agree on.
    """
    return _parts(variable) if has_strategy() else (variable,)


def _check_compiler():
    """Refuse a loop that TensorFlow would fail to compile later, without a remedy."""
    if replicas() > 1 and private.tracing.in_xla():
        raise ValueError(
            "LossScaleOptimizer.apply() was called in a tf.function with "
            f"jit_compile=True, on {replicas()} replicas. XLA compiles for one device, "
            "and a step meets all of them. Leave jit_compile out of the tf.function "
            "around or inside `strategy.run(...)`, or train on one device."
        )


def run_once(create):
    """Call ``create()``, which makes variables, once for all replicas and at once.

    An optimizer that is built in the middle of a step may set its first values with
    operations (`keras.optimizers.ScheduleFreeAdamW` does). They must not become part
    of the graph that is being traced, and reach every replica's copy.
    """
    if keras.backend.backend() != "tensorflow":
        return create()
    import tensorflow as tf

    def merged(_):
        with tf.init_scope():
            create()

    if not has_strategy() or tf.distribute.in_cross_replica_context():
        return merged(None)
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        return create()
    tf.distribute.get_replica_context().merge_call(merged)


def restore_unless(clean, variables, values):
    """Set ``variables`` back to ``values`` unless ``clean`` is true.

    Args:
        clean: Scalar bool tensor, the same on every replica.
        variables: List of Keras variables.
        values: Their earlier values as tensors; under a strategy, this replica's.
    """
    if not has_strategy():
        return _restore_here(clean, variables, values)
    import tensorflow as tf

    def merged(strategy, clean, values):
        copies = [copies_of(variable.value) for variable in variables]
        for place in range(len(strategy.extended.worker_devices)):
            own, *old = [_part(value, place) for value in (clean, *values)]
            pairs = zip(copies, old, strict=True)
            # Where replicas share one copy, the first restores it.
            pairs = [(each[place], value) for each, value in pairs if place < len(each)]
            _restore_on_its_device(own, pairs)

    tf.distribute.get_replica_context().merge_call(merged, args=(clean, values))


def count_if_any(counter, event):
    """Add 1 to ``counter`` if ``event`` is true on any replica of this machine.

    Without meeting other machines, which would cost time in every step.

    Args:
        counter: A scalar int Keras variable that every replica has a copy of.
        event: Scalar bool tensor, of this replica.
    """
    if not has_strategy():
        counter.assign_add(ops.cast(event, counter.dtype))
        return
    import tensorflow as tf

    def merged(strategy, event):
        happened = ops.any(ops.stack(_parts(event)))
        for copy in copies_of(counter.value):
            copy.assign_add(ops.cast(happened, counter.dtype))

    tf.distribute.get_replica_context().merge_call(merged, args=(event,))


def _run(each, step, gradients):
    if step.window is None:
        verdict = _update(each, step, gradients)
    else:
        verdict = _accumulate(each, step, gradients)
    step.advance(verdict)


def _accumulate(each, step, gradients):
    """Collect a micro-batch, or close the window and update with its mean."""

    def close():
        verdict = _update(each, step, each(step.window.mean, gradients))
        return _known(verdict)

    def collect():
        verdict, overflowed = _judge_apart(each, step, gradients)
        _branch(
            step,
            verdict,
            good=lambda: each(step.window.collect, gradients),
            overflowed=lambda: overflowed,
        )
        return _known(verdict)

    return Verdict(*_cond(step.window.is_last(), close, collect))


def _cond(condition, if_true, if_false):
    """Branch where the replicas meet, or on one device."""
    branch = ops.cond if has_strategy() else private.kernels.cond
    return branch(condition, if_true, if_false)


def _update(each, step, gradients):
    """Aggregate, judge, and commit if all is finite. Return the verdict."""
    if not step.aggregate:
        verdict, overflowed = _judge_apart(each, step, gradients)
        _branch(
            step,
            verdict,
            good=lambda *finite: step.commit(each, gradients, *finite),
            overflowed=lambda: overflowed,
        )
        return verdict
    total = each(lambda gradients: _all_reduce(step, gradients), gradients)
    verdict = step.judge(_one(total))
    own = _finite_apart(each, verdict.finite, gradients) if step.count else None
    _branch(
        step,
        verdict,
        good=lambda *finite: step.commit(each, total, *finite),
        overflowed=lambda: ops.equal(_of_all(each, own), 0),
    )
    return verdict


def _finite_apart(each, all_finite, gradients):
    """Return per replica 0.0 if its own gradients are not finite, else 1.0.

    They are looked at only if ``all_finite``, the verdict on their sum, is false.
    """

    def finite(gradients):
        parts = kinds.dense_parts(gradients)
        # What enters the branch stays in memory until the verdict on the sum is known.
        narrow = [
            private.tracing.before_cast(stack)
            for _, stack in stacks.small_ones_stacked(parts)
        ]
        return private.kernels.cond(
            all_finite,
            lambda: ops.convert_to_tensor(1.0),
            lambda: ops.cast(numerics.every_finite(narrow), "float32"),
        )

    return each(finite, gradients)


def _branch(step, verdict, good, overflowed):
    """Do ``good()`` if all is finite; else count the replicas in ``overflowed()``."""

    def bad():
        if step.count:
            step.count(overflowed())

    if not step.masks:
        _cond(verdict.finite, lambda: nothing(good()), bad)
        return
    good(verdict.finite)
    if step.count:
        ops.cond(verdict.finite, nothing, bad)


def _judge_apart(each, step, gradients):
    """Judge every replica's own gradients.

    Returns:
        The verdict on all of them together, and a bool vector of shape (replicas,):
        whose own were not finite.
    """

    def facts(gradients):
        verdict = _known(step.judge(gradients))
        return _gather(ops.stack([ops.cast(fact, "float32") for fact in verdict]))

    finite, *largest = ops.unstack(_one(each(facts, gradients)), axis=1)
    finite = ops.greater(finite, 0)
    verdict = Verdict(ops.all(finite), *(ops.max(column) for column in largest))
    return verdict, ops.logical_not(finite)


def _known(verdict):
    """Return the verdict's tensors without the None that a branch cannot return."""
    return [fact for fact in verdict if fact is not None]


def _all_reduce(step, gradients):
    """Sum each gradient over the replicas; None stays None. Called in a replica."""
    if replicas() == 1:
        return gradients
    summed = [
        gradient is not None and not overwrites
        for gradient, overwrites in zip(gradients, step.overwrites, strict=True)
    ]
    parts = [gradient for gradient, sums in zip(gradients, summed, strict=True) if sums]
    if parts:
        parts = stacks.map_stacked(functools.partial(_sums, step.wire_dtype), parts)
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
    if dtype is None or not _narrows(part, dtype):
        return part
    return kinds.map_values(lambda v: ops.cast(v / headroom, dtype), part)


def _narrows(part, dtype):
    if kinds.is_sparse(part) and dtype == "bfloat16":
        return False  # sparse gradients are gathered: TensorFlow has no such kernel
    return keras.backend.standardize_dtype(part.dtype) in ("float32", "float64")


def _widened(total, part, headroom):
    if total.dtype == part.dtype:
        return total
    return kinds.map_values(lambda v: ops.cast(v, part.dtype) * headroom, total)


def _largest_of_all(value):
    """Return the elementwise maximum over the replicas. Called in a replica."""
    return None if value is None else ops.max(_gather(value), axis=0)


def _of_all(each, values):
    """Return every replica's scalar of ``values``, in a vector.

    On one machine they are at hand. A collective would cost time even in a branch that
    is not taken, since TensorFlow numbers each one anew in every step.
    """
    parts = _parts(values)
    return ops.stack(parts) if len(parts) == replicas() else _one(each(_gather, values))


def _gather(value):
    """Return every replica's ``value``, stacked in front. Called in a replica."""
    if not has_strategy():
        return ops.expand_dims(value, 0)
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    rank = [1] * len(value.shape)
    own = ops.equal(
        ops.reshape(ops.arange(context.num_replicas_in_sync), [-1, *rank]),
        context.replica_id_in_sync_group,
    )
    # Not a product: 0 times inf is NaN.
    row = ops.where(own, ops.expand_dims(value, 0), ops.zeros((), value.dtype))
    return context.all_reduce(tf.distribute.ReduceOp.SUM, row)


def _one(values):
    """Return one replica's part of ``values``, a list or a tensor.

    Where it speaks for all, as with aggregated gradients.
    """
    if isinstance(values, list):
        return [_one(value) for value in values]
    if values is None or not has_strategy():
        return values
    import tensorflow as tf

    if not tf.distribute.in_cross_replica_context():
        return values
    return _part(values, 0)


def _here(function, *arguments):
    return function(*arguments)


#: Up to so many numbers XLA chooses between values quicker than between branches.
_CHOSEN = 2**16


def _restore_here(clean, variables, values):
    branched = []
    for variable, value in zip(variables, values, strict=True):
        if private.tracing.in_xla() and math.prod(variable.shape) <= _CHOSEN:
            variable.assign(ops.where(clean, variable, value))
        else:
            branched.append((variable, value))
    if branched:
        _restore(clean, *zip(*branched, strict=True))


def _part(value, place):
    """Return what the replica at ``place`` gave; a tensor all gave is there once."""
    parts = _parts(value)
    return parts[place if len(parts) > 1 else 0]


def _parts(value):
    """Return what each replica on this machine gave or has, as a tuple."""
    import tensorflow as tf

    return tf.distribute.get_strategy().experimental_local_results(value)


def _restore_on_its_device(clean, pairs):
    """Branch on the device of one replica, in one node: as on one device."""
    import tensorflow as tf

    if pairs:
        copy, _ = pairs[0]
        with tf.device(copy.device):
            _restore(clean, *zip(*pairs, strict=True))


def _restore(clean, variables, values):
    private.kernels.cond(clean, nothing, lambda: assign_all(variables, values))


def assign_all(variables, values):
    """Give each of ``variables`` its value of ``values``."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def nothing(_=None):
    """Be a branch of a cond that returns no value."""
