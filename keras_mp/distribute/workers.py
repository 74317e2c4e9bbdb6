"""What all machines of a strategy have to agree on, outside of a step."""

from typing import Any

from keras_mp import private


def smallest_over_workers(model, value):
    """Return the smallest of the numbers that the machines of ``model`` give.

    Each machine has to call it; it waits for the others. On one machine it returns
    ``value``.

    Args:
        model: A Keras model.
        value: A float, which may be infinite.
    """
    if is_alone(model):
        return value
    strategy: Any = private.trainer.strategy_of(model)
    import tensorflow as tf

    values = strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant([value], "float32")
    )
    with strategy.scope():
        return float(tf.reduce_min(strategy.gather(values, axis=0)))


def is_alone(model):
    """Return whether this machine has all replicas of ``model``."""
    strategy = private.trainer.strategy_of(model)
    return strategy is None or (
        strategy.num_replicas_in_sync == len(strategy.extended.worker_devices)
    )


def replicas_of(model):
    """Return over how many replicas a step of ``model`` takes the mean of its loss.

    1 inside of the scope of its strategy, where losses are divided already.
    """
    strategy = private.trainer.strategy_of(model)
    if strategy is None:
        return 1
    import tensorflow as tf

    return (
        strategy.num_replicas_in_sync
        // tf.distribute.get_strategy().num_replicas_in_sync
    )
