"""A step that is skipped changes nothing in the model that took it."""

import functools
import weakref

import keras
from keras import ops

from keras_mp import distribute, private
from keras_mp.optimizer import LossScaleOptimizer


def protect(model: keras.Model, optimizer: LossScaleOptimizer) -> None:
    """Make a step that ``optimizer`` skips leave every variable of ``model`` as it was.

    A forward pass that overflows writes its inf and NaN into BatchNorm statistics,
    metrics and random seeds before any gradient exists to be judged. So the model's
    ``train_step`` is wrapped: it keeps the values these variables had, runs the step,
    and puts them back if an optimizer skipped. Values are kept by reference and put
    back in a branch, so a step that is applied copies nothing.

    Trainable variables are the optimizer's to guard: keeping their values would copy
    each one at every update. So a layer that assigns a trainable variable of its own in
    its forward pass (`keras.layers.SpectralNormalization` does) is not covered.
    """
    if not hasattr(model.train_step, "_keras_mp_optimizers"):
        model.train_step = _protected(model, model.train_step)
    model.train_step._keras_mp_optimizers.add(optimizer)


def _protected(model, train_step):
    """Return ``train_step`` with the model's state put back after a skipped step."""
    # Weakly held: a model that is compiled again lets its old optimizer go.
    in_use = weakref.WeakSet()

    @functools.wraps(train_step)
    def protected(data):
        optimizers = list(in_use)
        if not optimizers:
            return train_step(data)
        if model.run_eagerly:
            # A traced function has created all variables before its first real step.
            private.build_for(model, data)
        skipped = _skipped(optimizers)
        variables = model.non_trainable_variables + model.metrics_variables
        values = distribute.values_of(variables)
        logs = train_step(data)
        clean = ops.equal(skipped, _skipped(optimizers))
        distribute.restore_unless(clean, variables, values)
        return _logs_of(model, logs, clean)

    protected._keras_mp_optimizers = in_use
    return protected


def _skipped(optimizers):
    """Return how many steps all ``optimizers`` together have skipped."""
    return functools.reduce(ops.add, [each.skipped_steps for each in optimizers])


def _logs_of(model, logs, clean):
    """Return ``logs``; of a skipped step, with the metrics as they are again."""
    results = model.get_metrics_result()
    return {
        name: ops.where(clean, value, results[name]) if name in results else value
        for name, value in logs.items()
    }
