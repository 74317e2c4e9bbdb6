"""A skipped step changes nothing in its model."""

import contextlib
import functools
import weakref

import keras
from keras import ops

from keras_mp import distribute, private, watching
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.protection import alarm, means
from keras_mp.wrapping import wrap_once

_OPTIMIZERS = "_keras_mp_optimizers"


def protect(model: keras.Model, optimizer: LossScaleOptimizer) -> None:
    """Make a step that ``optimizer`` skips leave every variable of ``model`` as it was.

    A forward pass that overflows writes its inf and NaN into BatchNorm statistics,
    metrics and random seeds before any gradient exists to be judged. So the model's
    ``train_step`` is wrapped: it keeps the values these variables had, runs the step,
    and puts them back if an optimizer skipped. Values are kept by reference and put
    back in a branch, so a step that is applied copies nothing.

    The loss and the metrics of a batch do not depend on the scale. So they count
    whether its step is skipped or not, except for what is not finite (`means`).

    The optimizer guards the trainable variables: to keep their values here would copy
    each one at every update. So a layer that assigns a trainable variable of its own in
    its forward pass (`keras.layers.SpectralNormalization` does) is not covered.

    Args:
        model: A Keras model.
        optimizer: The optimizer, or one of those, that its ``train_step`` uses.
    """
    # Weak references: a model that is compiled again frees its old optimizer.
    optimizers = vars(model).setdefault(_OPTIMIZERS, weakref.WeakSet())
    optimizers.add(optimizer)
    wrapper = functools.partial(_protected, model, optimizers)
    wrap_once(model, "train_step", "protected", wrapper)
    watching.watch(model, "skipped steps", lambda: alarm.begin(list(optimizers)))


def _protected(model, in_use, train_step):
    """Return ``train_step`` with the model's state put back after a skipped step."""

    @functools.wraps(train_step)
    def protected(data):
        optimizers = list(in_use)
        if not optimizers:
            return train_step(data)
        if model.run_eagerly:
            # A traced function has created all variables before its first real step.
            private.trainer.build_for(model, data)
        skipped = _skipped(optimizers)
        variables = private.layers.state_of(model)
        values = private.variables.values_of(variables)
        before = means.begin(model)
        with contextlib.ExitStack() as steps:
            for optimizer in optimizers:
                steps.enter_context(optimizer.in_train_step())
            logs = train_step(data)
        clean = ops.equal(skipped, _skipped(optimizers))
        distribute.restore_unless(clean, variables, values)
        logs, nonfinite = means.leave_out(model, before, logs)
        for optimizer in optimizers:
            optimizer.count_loss(distribute.unless_empty(nonfinite))
        return logs

    return protected


def _skipped(optimizers):
    """Return how many steps all ``optimizers`` together have skipped."""
    return functools.reduce(ops.add, [each.skipped_steps for each in optimizers])
