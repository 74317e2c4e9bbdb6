"""Steps across replicas; the one room that knows ``tf.distribute``.

Under a strategy, gradients are aggregated first and judged afterwards, so that every
replica reaches the same verdict. The update then runs in every replica's context with
the inner optimizer's own all-reduce switched off: gradients cross the network once.
"""

import contextlib

import keras
from keras import ops


def has_strategy():
    """Return whether this code runs under a ``tf.distribute`` strategy's scope."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def run_step(optimizer, gradients, judge, commit, advance):
    """Aggregate one step's gradients, judge them, and update only if they are finite.

    Args:
        optimizer: The inner optimizer, whose own all-reduce is switched off meanwhile.
        gradients: List of gradients of this replica, not yet aggregated.
        judge: ``judge(gradients) -> Verdict``; called once for all replicas, with
            aggregated gradients.
        commit: ``commit(gradients)``; called in each replica's context, if finite.
        advance: ``advance(verdict)``; called once for all replicas, in any case.

    Raises:
        ValueError: Called outside a replica's context.
    """
    if not has_strategy():
        return _judge_and_commit(gradients, judge, commit, advance)
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        raise ValueError(
            "LossScaleOptimizer.apply() must be called in a replica context. "
            "Call it inside the function given to `strategy.run(...)`."
        )
    context = tf.distribute.get_replica_context()
    gradients = _all_reduce(context, gradients)
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        with _aggregated(optimizer):
            return _judge_and_commit(gradients, judge, commit, advance)

    # A cond may hold no merge_call, which the inner optimizer makes, so the branch is
    # taken where all replicas meet.
    def merged(strategy, gradients):
        def commit_everywhere(_):
            with _aggregated(optimizer):
                strategy.extended.call_for_each_replica(commit, args=(gradients,))

        # Aggregated gradients are the same everywhere: one replica's speak for all.
        local = [_first_local(strategy, gradient) for gradient in gradients]
        _judge_and_commit(local, judge, commit_everywhere, advance)

    context.merge_call(merged, args=(gradients,))


def values_of(variables):
    """Return the present values of ``variables``, on this replica, as tensors.

    Values are shared, not copied, until a variable is assigned. `keras.ops` hands a
    TensorFlow variable back instead of reading it.
    """
    if keras.backend.backend() != "tensorflow":
        return [ops.copy(variable) for variable in variables]
    import tensorflow as tf

    return [tf.convert_to_tensor(variable.value) for variable in variables]


def restore_unless(clean, variables, values):
    """Set ``variables`` back to ``values`` unless ``clean`` is true.

    Args:
        clean: Scalar bool tensor, the same on every replica.
        variables: List of Keras variables.
        values: Their earlier values as tensors; under a strategy, this replica's.
    """
    if not has_strategy():
        return _restore(clean, lambda: _assign_all(variables, values))
    import tensorflow as tf

    def merged(strategy, clean, values):
        def restore():
            for variable, value in zip(variables, values, strict=True):
                strategy.extended.update(
                    variable.value, lambda part, old: part.assign(old), args=(value,)
                )

        _restore(_first_local(strategy, clean), restore)

    tf.distribute.get_replica_context().merge_call(merged, args=(clean, values))


def _judge_and_commit(gradients, judge, commit, advance):
    verdict = judge(gradients)
    ops.cond(verdict.finite, lambda: _nothing(commit(gradients)), _nothing)
    advance(verdict)


def _all_reduce(context, gradients):
    """Sum each gradient over the replicas; None stays None."""
    import tensorflow as tf

    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return gradients
    reduced = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if gradient is None else next(reduced) for gradient in gradients]


@contextlib.contextmanager
def _aggregated(optimizer):
    """Keep ``optimizer`` from summing gradients that are summed already.

    Keras has no public switch for it; the method is TensorFlow's half of
    ``keras.optimizers.Optimizer``.
    """
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    try:
        yield
    finally:
        del optimizer._all_reduce_sum_gradients


def _first_local(strategy, value):
    if value is None:
        return None
    return strategy.experimental_local_results(value)[0]


def _restore(clean, restore):
    ops.cond(clean, _nothing, lambda: _nothing(restore()))


def _assign_all(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _nothing(_=None):
    """Be a branch of a cond that returns no value."""
