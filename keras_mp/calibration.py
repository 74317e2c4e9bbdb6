"""A first loss scale that is measured on one batch, not guessed."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import distribute, private
from keras_mp.diagnosis import case_of, culprits, given, scales
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.recording import Batch, executed, share
from keras_mp.wrapping import wrap_once

#: The bits that are left free: later batches may have gradients four times as large.
_HEADROOM = 2

#: The powers of two from the smallest to the largest scale.
_MOST_HEADROOM = 253

_PENDING = "_keras_mp_calibrates"
_CALLED = "keras_mp.calibrate_scale"


def calibrate_scale(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    headroom: int = _HEADROOM,
    loss: Callable | None = None,
) -> float:
    """Set the loss scale of ``model`` to what one batch allows, and return it.

    So that training does not begin with a row of skipped steps, nor with a scale under
    which gradients vanish. The batch is run forward and backward as ``fit`` would,
    layer by layer and not in a graph, and the largest power of two is searched for at
    which no gradient overflows. The scale is set ``headroom`` bits below it, within the
    range of the rule. Nothing else changes: no weight, no statistic, no seed, no
    metric, no counter. Variables that were not created yet are created, as ``fit``
    does.

    ``keras_mp.compile(..., scaling="calibrate")`` does so with the first batch of
    ``fit``.

    Args:
        model: A Keras model whose optimizer is a `keras_mp.LossScaleOptimizer`, built
            or not.
        x: One batch of inputs, as for ``model.train_on_batch``; under a strategy, what
            one replica gets of it.
        y: Its targets.
        sample_weight: Its weights.
        headroom: How many bits to leave free, from 0 to 253.
        loss: ``loss(y, y_pred)``, a function or a `keras.losses.Loss`, instead of what
            the model was compiled with: for a model that computes its loss in a
            ``train_step`` of its own.

    Returns:
        The scale, on all replicas. Across machines each has to call this function, and
        all get the smallest scale that any of them found.

    Raises:
        TypeError: ``model`` is not a Keras model, or ``headroom`` is no whole number.
        ValueError: ``headroom`` is out of its range; the optimizer has no loss scale,
            or one that is fixed; the model has no ``call`` or no loss; or the loss is
            not finite, or no scale is small enough: the message names the layer.

    Synchronises with the device. It takes as long as some five steps without a graph.

    Example:

    >>> layers = [keras.layers.Dense(8), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    >>> scale = keras_mp.calibrate_scale(model, x, 1e4 * y)
    >>> scale == model.optimizer.stats()["scale"] and scale < 32768.0
    True
    """
    given.check_model(f"{_CALLED}(model, ...)", model, loss)
    if isinstance(headroom, bool) or not isinstance(headroom, int):
        raise TypeError(f"{_CALLED}(headroom={headroom!r}) needs a whole number.")
    if not 0 <= headroom <= _MOST_HEADROOM:
        raise ValueError(
            f"{_CALLED}(headroom={headroom!r}) needs from 0 to {_MOST_HEADROOM} bits, "
            "which is all that float32 has. Leave it out for 2."
        )
    optimizer = _optimizer_of(model, f"{_CALLED}(model, ...)")
    return _calibrated(
        model, optimizer, given.as_batch(_CALLED, x, y, sample_weight), loss, headroom
    )


def calibrate_first_step(model: keras.Model) -> None:
    """Have ``model`` calibrate its loss scale with the batch of its first step.

    A scale that was loaded, with the steps that were made with it, is kept.

    Raises:
        ValueError: ``model`` has no ``call``, or its optimizer has no scale to set.
    """
    called = "keras_mp.compile(model, ..., scaling='calibrate')"
    given.check_model(called, model, None)
    # Past `__setattr__`, by which Keras tracks what it gets.
    vars(model)[_PENDING] = weakref.ref(_optimizer_of(model, called))
    wrapper = functools.partial(_making, model)
    wrap_once(model, "make_train_function", "calibrated", wrapper)


def _optimizer_of(model: keras.Model, called: str) -> LossScaleOptimizer:
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, LossScaleOptimizer):
        raise ValueError(
            f"{called} needs a model whose optimizer is a keras_mp.LossScaleOptimizer, "
            f"and that of model '{model.name}' is {optimizer!r}. Compile it by "
            "keras_mp.compile(model, ...) in float16; bfloat16 and float32 need no "
            "scale. If its `train_step` uses several optimizers, give each a rule of "
            "keras_mp.scaling instead."
        )
    optimizer.check_scale_can_be_set(called)
    return optimizer


# One batch.


def _calibrated(
    model: keras.Model,
    optimizer: LossScaleOptimizer,
    batch: Batch,
    loss: Callable | None,
    headroom: int,
) -> float:
    """Set the scale of ``optimizer`` from a batch, and return it."""
    with distribute.scope_of(model):
        private.trainer.build_for(model, tuple(batch))
    present = optimizer.stats()["scale"]
    own = _largest_safe_scale(model, batch, loss, present)
    largest = distribute.smallest_over_workers(model, own)
    if not own:
        raise ValueError(_why(model, batch, loss, present))
    if not largest:
        raise ValueError(
            f"{_CALLED} found no loss scale: the batch of another machine has a loss "
            "or gradients that are not finite. That machine says where."
        )
    return (
        present if math.isinf(largest) else optimizer.set_scale(largest / 2**headroom)
    )


def _largest_safe_scale(
    model: keras.Model, batch: Batch, loss: Callable | None, scale: float
) -> float:
    """Return the largest safe scale; 0 if there is none, inf for a batch of no rows."""
    rows = [leaf.shape[0] for leaf in keras.tree.flatten(batch.x) if leaf is not None]
    if 0 in rows:
        return math.inf
    recorder = given.recorder_of(_CALLED, model, batch, loss)
    record = recorder.record(scale)
    safe = scales.largest_safe_scale(recorder.run(), record) or 0.0
    # A step of several replicas divides its loss by their number.
    return safe * 2.0 ** math.floor(math.log2(distribute.replicas_of(model)))


def _why(model: keras.Model, batch: Batch, loss: Callable | None, scale: float) -> str:
    case = case_of(given.recorder_of(_CALLED, model, batch, loss), scale)
    found = culprits.find(case)
    first = f" {found[0]}" if found else ""
    return (
        f"{_CALLED} found no loss scale at which this batch of model '{model.name}' "
        f"has finite gradients: its loss is {case.record.loss:.6g}.{first} "
        "keras_mp.diagnose(model, x, y) says more."
    )


# The first step of `fit`.


def _making(model: keras.Model, make: Callable) -> Callable:
    """Return ``make``, whose function calibrates before its first step."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> None:
        make(*args, **kwargs)
        if _pending(model) is not None:
            model.train_function = _calibrating(model, model.train_function)

    return made


def _pending(model: keras.Model) -> LossScaleOptimizer | None:
    """Return the optimizer of ``model`` if its scale is to be calibrated."""
    reference = vars(model).get(_PENDING)
    optimizer = reference and reference()
    return optimizer if optimizer is getattr(model, "optimizer", None) else None


def _calibrating(model: keras.Model, function: Callable) -> Callable:
    """Return ``function``, which runs some steps, with a calibration before it."""

    @functools.wraps(function)
    def calibrating(iterator: Any) -> Any:
        optimizer = _pending(model)
        if optimizer is None:
            return function(iterator)

        def step(data: Any) -> Any:
            if _pending(model) is optimizer:
                if not optimizer.stats()["steps"]:
                    _calibrated(model, optimizer, share(model, data), None, _HEADROOM)
                del vars(model)[_PENDING]
            return function([data])

        return executed(model, iterator, step)

    return calibrating
