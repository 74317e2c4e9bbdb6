"""The model and the batch that were given: checked, as tensors, and run forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_mp import arguments, private
from keras_mp.recording import Batch, Recorder


def check_model(called: str, model: Any, loss: Callable | None) -> None:
    """Check that a batch of ``model`` can be run forward and backward.

    Args:
        called: What was called, for messages: ``"keras_mp.diagnose(model, ...)"``.
        model: What should be a Keras model.
        loss: The loss that was given, or None for the compiled one.

    Raises:
        TypeError: ``model`` is not a Keras model.
        ValueError: It has no ``call`` or no loss.
    """
    arguments.check_model(called, model)
    if not private.layers.has_call(model):
        raise ValueError(
            f"{called} needs a model with a `call`. Class "
            f"{type(model).__name__} has none. Call keras_mp.diagnose or "
            "keras_mp.calibrate_scale with the models inside it one by one, and loss=, "
            "what its `train_step` computes from each."
        )
    if loss is None and not getattr(model, "compiled", False):
        raise ValueError(
            f"{called} needs a loss, and model '{model.name}' is "
            "not compiled. Call keras_mp.compile(model, ...) first, or pass "
            "loss=keras.losses.MeanSquaredError() or any function of y and y_pred."
        )


def as_batch(called: str, x: Any, y: Any, sample_weight: Any) -> Batch:
    """Return arrays as a `Batch` of tensors, floats in float32, as ``fit`` does.

    Raises:
        TypeError: Something is neither an array nor a tensor, or has no rows.
    """

    def tensor(leaf: Any) -> Any:
        if leaf is None:
            return None
        if not getattr(leaf, "shape", None) or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{called} needs one batch as for model.train_on_batch: x, y and "
                "sample_weight in arrays or tensors, with a row for each sample. Got "
                f"{leaf!r} of type {type(leaf).__name__}."
            )
        if not hasattr(leaf, "__array__") or keras.ops.is_tensor(leaf):
            return leaf
        is_wide = str(leaf.dtype) == "float64"
        return keras.ops.convert_to_tensor(leaf, "float32" if is_wide else None)

    if x is None:
        raise TypeError(f"{called} needs a batch of inputs. Got x=None.")
    return Batch(*keras.tree.map_structure(tensor, (x, y, sample_weight)))


def recorder_of(
    called: str, model: keras.Model, batch: Batch, loss: Callable | None
) -> Recorder:
    """Return a `Recorder` that has run the batch forward.

    Raises:
        ValueError: There is no loss to compute, or an operation cannot take the batch.
    """
    recorder = Recorder(model, batch, loss)
    try:
        recorder.run()
    except ValueError as error:
        if "No loss to compute" not in str(error):
            raise
        raise ValueError(
            f"{called} needs a loss. Model '{model.name}' was compiled without one and "
            "adds none. Pass loss=, a function of y and y_pred that returns what its "
            "`train_step` computes, to keras_mp.diagnose or keras_mp.calibrate_scale."
        ) from error
    except private.errors.of_operations() as error:
        raise ValueError(
            f"{called}: model '{model.name}' and its loss cannot take this batch: "
            f"{private.errors.summary_of(error)}. Pass x, y and sample_weight of the "
            "shapes that model.train_on_batch takes."
        ) from error
    return recorder
