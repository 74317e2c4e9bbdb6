"""Where a step runs: on one device, or on the replicas of a strategy.

`meet` calls a function where the replicas meet, with one of three objects that have
the same methods, so that one description of a step serves all strategies.
"""

import math

import keras
from keras import ops

from keras_mp import private

#: Up to so many numbers XLA chooses between values quicker than between branches.
_CHOSEN = 2**16


class OneDevice:
    """One device, where all is a plain call."""

    def run(self, function, *arguments):
        """Call ``function`` on each replica, with its part of the ``arguments``."""
        return function(*arguments)

    def first(self, values):
        """Return one replica's part of ``values``, a tensor or a list of them.

        For values that are the same on every replica, as aggregated gradients are.
        """
        return values

    def gather(self, values):
        """Return every replica's part of the tensor ``values``, stacked in front."""
        return ops.expand_dims(values, 0)

    def cond(self, condition, if_true, if_false):
        """Do what `keras.ops.cond` does, once for all replicas."""
        return private.kernels.cond(condition, if_true, if_false)

    def add_if_any(self, counter, event):
        """Add 1 to the Keras variable ``counter`` if ``event`` is true anywhere."""
        counter.assign_add(ops.cast(event, counter.dtype))

    def restore_unless(self, clean, variables, values):
        """Set ``variables`` back to ``values`` unless ``clean`` is true."""
        branched = []
        for variable, value in zip(variables, values, strict=True):
            if private.tracing.in_xla() and math.prod(variable.shape) <= _CHOSEN:
                variable.assign(ops.where(clean, variable, value))
            else:
                branched.append((variable, value))
        _restore(clean, branched)


class LoneReplica(OneDevice):
    """One replica of several, none of which waits for the others but to sum."""

    def gather(self, values):
        return gather(values)

    def cond(self, condition, if_true, if_false):
        return ops.cond(condition, if_true, if_false)


class Replicas:
    """All replicas of a strategy, in ``tf.distribute``'s cross-replica context."""

    def __init__(self, strategy):
        self._strategy = strategy

    def run(self, function, *arguments):
        return self._strategy.extended.call_for_each_replica(function, args=arguments)

    def first(self, values):
        if isinstance(values, list):
            return [None if value is None else _part(value, 0) for value in values]
        return _part(values, 0)

    def gather(self, values):
        # A collective would cost time even in a branch that is not taken, since
        # TensorFlow numbers each one anew in every step. On one machine none is needed.
        parts = copies_of(values)
        if len(parts) == self._strategy.num_replicas_in_sync:
            return ops.stack(parts)
        return self.first(self.run(gather, values))

    def cond(self, condition, if_true, if_false):
        return ops.cond(condition, if_true, if_false)

    def add_if_any(self, counter, event):
        # Without meeting other machines, which would cost time in every step.
        happened = ops.any(ops.stack(copies_of(event)))
        for copy in copies_of(counter.value):
            copy.assign_add(ops.cast(happened, counter.dtype))

    def restore_unless(self, clean, variables, values):
        import tensorflow as tf

        copies = [copies_of(variable.value) for variable in variables]
        for index in range(len(self._strategy.extended.worker_devices)):
            own, *old = [_part(value, index) for value in (clean, *values)]
            # Where replicas share one copy, the first restores it.
            pairs = [
                (each[index], value)
                for each, value in zip(copies, old, strict=True)
                if index < len(each)
            ]
            if pairs:
                # In one node, as on one device.
                with tf.device(pairs[0][0].device):
                    _restore(own, pairs)


@private.tracing.as_written
def meet(function, *arguments):
    """Call ``function(devices, *arguments)`` once, where all replicas meet.

    Args:
        function: It returns nothing.
        *arguments: Tensors and lists of them, of this replica.
    """
    if not has_strategy():
        return function(OneDevice(), *arguments)
    import tensorflow as tf

    if not meets():
        return function(LoneReplica(), *arguments)

    def merged(strategy, *arguments):
        function(Replicas(strategy), *arguments)

    tf.distribute.get_replica_context().merge_call(merged, args=arguments)


def restore_unless(clean, variables, values):
    """Set ``variables`` back to ``values`` unless ``clean`` is true.

    Args:
        clean: Scalar bool tensor, the same on every replica.
        variables: List of Keras variables.
        values: Their earlier values as tensors; under a strategy, this replica's.
    """
    meet(
        lambda devices, clean, values: devices.restore_unless(clean, variables, values),
        clean,
        values,
    )


def count_if_any(counter, event):
    """Add 1 to ``counter`` if ``event`` is true on any replica of this machine.

    Args:
        counter: A scalar int Keras variable that every replica has a copy of.
        event: Scalar bool tensor, of this replica.
    """
    meet(lambda devices, event: devices.add_if_any(counter, event), event)


def run_once(create):
    """Call ``create()``, which makes variables, once for all replicas and at once.

    An optimizer that is built in the middle of a step may set its first values with
    operations (`keras.optimizers.ScheduleFreeAdamW` does). They must not become part
    of the graph that is being traced, and reach every replica's copy.
    """
    if keras.backend.backend() != "tensorflow":
        return create()
    import tensorflow as tf

    def create_at_once(_):
        with tf.init_scope():
            create()

    if has_strategy() and tf.distribute.in_cross_replica_context():
        create_at_once(None)
    elif has_strategy() and not meets():
        create()
    else:
        meet(create_at_once)


def has_strategy():
    """Return whether this code runs under a ``tf.distribute`` strategy's scope."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def meets():
    """Return whether the replicas of this scope's strategy meet, by ``merge_call``."""
    import tensorflow as tf

    return not tf.__internal__.distribute.strategy_supports_no_merge_call()


def replicas():
    """Return over how many replicas, on all machines, this scope's variables go."""
    if not has_strategy():
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def replicas_here(model):
    """Return the numbers of this machine's replicas among all, as a range.

    Args:
        model: A Keras model.
    """
    strategy = private.trainer.strategy_of(model)
    if strategy is None:
        return range(1)
    here = len(strategy.extended.worker_devices)
    if here == strategy.num_replicas_in_sync:
        return range(here)
    resolver = strategy.cluster_resolver
    chiefs = len(resolver.cluster_spec().as_dict().get("chief", ()))
    machine = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
    return range(machine * here, (machine + 1) * here)


def share_variables(variable):
    """Return whether all replicas use one copy of a variable created in this scope."""
    if not has_strategy():
        return False
    import tensorflow as tf

    devices = tf.distribute.get_strategy().extended.worker_devices
    return len(copies_of(variable)) < len(devices)


def copies_of(value):
    """Return what each replica on this machine gave or has, as a tuple.

    Of a variable, its copies; reading the variable itself gives the first one, or what
    all agree on.
    """
    if not has_strategy():
        return (value,)
    import tensorflow as tf

    return tf.distribute.get_strategy().experimental_local_results(value)


def assign_all(variables, values):
    """Give each of ``variables`` its value of ``values``."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def no_value(_=None):
    """Be a branch that returns no value."""


def _restore(clean, pairs):
    """Give variables their values of ``pairs`` unless ``clean`` is true."""
    if pairs:
        private.kernels.cond(
            clean, no_value, lambda: assign_all(*zip(*pairs, strict=True))
        )


def gather(value):
    """Return every replica's ``value``, stacked in front. Called in a replica."""
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


def _part(value, index):
    """Return what the replica at ``index`` gave; a tensor all gave is there once."""
    parts = copies_of(value)
    return parts[index if len(parts) > 1 else 0]
