"""``fit``, ``evaluate`` and ``train_on_batch`` under a strategy of several replicas.

Methods of one model are replaced that do not work there with Keras alone: how its
variables are made from a first batch, the shape of logs across machines, and steps on a
share of no rows. `private` says which methods of Keras these are; none of Keras's code
is repeated.
"""

import functools
import warnings

import keras

from keras_mp import private
from keras_mp.distribute import empty
from keras_mp.wrapping import wrap_once


def prepare_steps(model, optimizer):
    """Make ``fit``, ``evaluate`` and the like of ``model`` work under its strategy.

    Does nothing twice, and nothing to a model that was not created under a strategy of
    several replicas.

    Args:
        model: A Keras model.
        optimizer: The optimizer, or one of those, that its ``train_step`` uses.
    """
    strategy = private.trainer.strategy_of(model)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    _do_without_jit(model, strategy)
    empty.ignore_nan_of_no_rows(optimizer)
    private.trainer.build_from(model, functools.partial(_first_shares, strategy))
    for name in ("train_step", "test_step"):
        wrapper = functools.partial(_on_any_share, model, strategy)
        wrap_once(model, name, "any share", wrapper)


def _on_any_share(model, strategy, step):
    """Return ``step``, safe for a share of no rows, with logs that can be reduced."""
    step = empty.without_trace(model, step)
    if strategy.num_replicas_in_sync > len(strategy.extended.worker_devices):
        step = _with_axis_in_logs(step)
    return step


# Building from the first batch.


def _first_shares(strategy, epoch_iterator):
    """Yield from ``epoch_iterator`` as it does, with the specs of one replica's share.

    Keras takes the mean over the replicas to get one batch, which needs shares of
    equal size and fails across machines. It wants to know shapes and dtypes only.
    """
    for first, last, batches in epoch_iterator:
        yield first, last, [_spec_of_share(strategy, next(iter(batches)))]


def _spec_of_share(strategy, batch):
    """Return the specs of the largest share of ``batch`` on this machine.

    A machine may have no row of the first batch; then one is assumed.
    """
    import tensorflow as tf

    leaves = keras.tree.flatten(batch)
    shares = zip(*map(strategy.experimental_local_results, leaves), strict=True)
    largest = max(shares, key=lambda share: int(empty.rows_of(share)))
    specs = [
        tf.TensorSpec([max(leaf.shape[0], 1), *leaf.shape[1:]], leaf.dtype)
        for leaf in largest
    ]
    return keras.tree.pack_sequence_as(batch, specs)


# Logs across machines.


def _with_axis_in_logs(step):
    """Return ``step`` with logs of shape (1,) instead of scalars.

    Across machines Keras takes the mean of logs along their first axis.
    """
    import tensorflow as tf

    def with_axis(value):
        value = tf.convert_to_tensor(value)
        return value[tf.newaxis] if value.shape.rank == 0 else value

    @functools.wraps(step)
    def step_with_axis(data):
        return keras.tree.map_structure(with_axis, step(data))

    return step_with_axis


# XLA.


def _do_without_jit(model, strategy):
    """Switch ``jit_compile=True`` off where a step spans several devices."""
    if not model.jit_compile:
        return
    warnings.warn(
        f"jit_compile=True of model '{model.name}' is switched off: under "
        f"{type(strategy).__name__} a step reads variables on "
        f"{strategy.num_replicas_in_sync} replicas, and XLA compiles for one device. "
        "Training goes on without XLA. To use XLA, train on one device; to keep this "
        "quiet, leave jit_compile out.",
        stacklevel=4,
    )
    model.jit_compile = False
