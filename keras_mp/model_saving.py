"""`save_model`: a saved model, in half the size if it is for inference only."""

import functools
import os
import pathlib
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np

from keras_mp import arguments, dtypes, loading, private
from keras_mp.export import agreement, files
from keras_mp.saved_files import checked_path

_ROUNDED_TO = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class Saved(NamedTuple):
    """What `save_model` wrote, and what rounding the weights changed.

    Attributes:
        path: The file or folder.
        size: Bytes on disk.
        weights_dtype: The dtype in which wider weights were written; None for their
            own.
        error: How far a weight was rounded, as a share of the largest weight of the
            same variable: the largest such share of all variables. 0 if none was
            rounded.
        variable: The path of that variable; None if none was rounded.
        zeroed: How many weights that were not 0 became 0.
        difference: Largest difference between a prediction of the file and one of the
            model, as a share of the largest prediction; None without ``sample``.
    """

    path: pathlib.Path
    size: int
    weights_dtype: str | None = None
    error: float = 0.0
    variable: str | None = None
    zeroed: int = 0
    difference: float | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.size:,} bytes"
        if self.weights_dtype is None:
            return text
        text += f", weights in {self.weights_dtype}. "
        if self.variable is None:
            text += "No weight was rounded."
        else:
            text += (
                f"Weights moved by up to {self.error:.1e} of the largest one of their "
                f"variable, in '{self.variable}'."
            )
        if self.zeroed:
            text += f" Of weights that were not 0, {self.zeroed:,} became 0."
        if self.difference is not None:
            text += f" Predictions moved by up to {self.difference:.1e} of the largest."
        return text


def save_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    weights_dtype: str | None = None,
    sample: Any = None,
) -> Saved:
    """Save ``model``; with ``weights_dtype``, for inference, in half the size.

    Without ``weights_dtype`` this is ``model.save(path)``. With it, each float variable
    of the layers that is wider is written in that dtype, and nothing of what the model
    was compiled with. `load_model` and `keras.saving.load_model` open
    the file, without keras_mp too if the model has no layer or policy of keras_mp's:
    Keras widens the weights to the dtype of the variables, so the model computes in
    what it did, from weights that have been rounded once. In a layer that computes in
    ``weights_dtype`` that changes nothing: it rounds them at each call.

    float16 has 11 bits and ends at 65,504; bfloat16 has 8 bits and the range of
    float32. The model stays as it is. A file appears at ``path`` when it is complete.

    Args:
        model: A Keras model.
        path: What ``model.save`` takes. With ``weights_dtype``, a path that ends in
            ``.keras``.
        weights_dtype: None, ``"float16"`` or ``"bfloat16"``.
        sample: None; or inputs as ``model.predict`` takes them, with ``weights_dtype``.
            Then the file is loaded, which needs the classes of your own to be
            registered, and its predictions are compared.

    Returns:
        A `Saved`: the size in bytes, and the errors that were made.

    Raises:
        TypeError: ``model`` is not a Keras model.
        ValueError: ``weights_dtype`` is another dtype, or ``path`` does not end in
            ``.keras``; or a weight lies beyond the range of ``weights_dtype``. Then
            nothing was written.

    Synchronises with the device: the weights are copied to the host.

    Example:

    >>> saved = keras_mp.save_model(model, "small.keras", weights_dtype="float16")
    >>> saved.error <= 2**-11
    True
    """
    arguments.check_model("keras_mp.save_model(model, ...)", model)
    path = pathlib.Path(checked_path("keras_mp.save_model", "path", path))
    if weights_dtype is None:
        model.save(path)
        return Saved(path, files.size(path))
    _check(path, weights_dtype)
    rounding = _Rounding(weights_dtype)
    with files.put_at(path) as new:
        with private.attributes.attributes_for_now(_without_state(model, rounding)):
            model.save(new)
        difference = None if sample is None else _difference(model, new, sample)
        size = files.size(new)
    return Saved(path, size, weights_dtype, *rounding.errors(), difference)


def _check(path, weights_dtype):
    called = f"keras_mp.save_model(..., weights_dtype={weights_dtype!r})"
    is_low = isinstance(weights_dtype, str) and weights_dtype in dtypes.LOW_PRECISION
    if not is_low:
        raise ValueError(
            f"{called}: it must be None, which keeps the dtypes, 'float16' or "
            "'bfloat16'."
        )
    if path.suffix != ".keras":
        raise ValueError(f"{called} needs a path that ends in '.keras'. Got '{path}'.")


def _without_state(model, rounding):
    """Yield what to change for ``model`` to be saved for inference.

    As of `private.attributes.attributes_for_now`. Keras writes what the methods of a
    layer give it, in any dtype, and reads it into variables of any dtype.
    """
    for layer in private.layers.walk(model):
        save = functools.partial(rounding.save, layer, layer.save_own_variables)
        changes: dict[str, Any] = {"save_own_variables": save}
        if isinstance(layer, keras.Model):
            changes["get_compile_config"] = dict
            for optimizer in _optimizers_of(layer):
                yield optimizer, {"save_own_variables": _save_nothing}
        yield layer, changes


def _optimizers_of(model):
    """Return what ``model`` was compiled with, and what is inside it, each once."""
    outer = getattr(model, "optimizer", None)
    if outer is None:
        return []
    inner = getattr(outer, "inner_optimizer", outer)
    every = [outer, inner, *private.optimizers.updating_parts(inner)]
    return {id(each): each for each in every}.values()


def _save_nothing(store):
    pass


class _Rounding:
    """Rounds the weights on their way into a file, and keeps the largest errors."""

    def __init__(self, dtype):
        self._dtype = dtype
        self._worst = (0.0, None)
        self._zeroed = 0

    def errors(self):
        """Return the largest error, its variable, and how many weights became 0."""
        return *self._worst, self._zeroed

    def save(self, layer, save_own_variables, store):
        """Write to ``store`` what ``save_own_variables`` writes, rounded."""
        own = {}
        save_own_variables(own)
        for key, value in own.items():
            name = getattr(value, "path", f"{layer.name}/{key}")
            store[key] = self._rounded(name, keras.ops.convert_to_numpy(value))

    def _rounded(self, name, value):
        wide = keras.backend.is_float_dtype(value.dtype) and value.dtype.itemsize > 2
        if not (wide and value.size):
            return value
        finite = np.isfinite(value)
        with np.errstate(over="ignore"):
            rounded = value.astype(_ROUNDED_TO[self._dtype])
        back = rounded.astype(value.dtype)
        if not np.isfinite(back[finite]).all():
            raise ValueError(
                f"keras_mp.save_model(..., weights_dtype='{self._dtype}'): variable "
                f"'{name}' holds {np.abs(value[finite]).max():.4g}, which lies beyond "
                f"the range of {self._dtype}. Nothing was written. Save in 'bfloat16', "
                "or without weights_dtype."
            )
        self._note(name, value[finite], back[finite])
        return rounded

    def _note(self, name, value, back):
        self._zeroed += int(((value != 0) & (back == 0)).sum())
        moved = np.abs(back - value).max(initial=0.0)
        if moved:
            share = float(moved / np.abs(value).max())
            self._worst = max(self._worst, (share, name), key=lambda pair: pair[0])


def _difference(model, path, sample):
    """Return how far predictions of the file lie from those of ``model``."""
    loaded = loading.load_model(path, compile=False)
    got, expected = (
        [np.asarray(each, "float32") for each in keras.tree.flatten(outputs)]
        for outputs in (each.predict(sample, verbose=0) for each in (loaded, model))
    )
    return max(map(agreement.difference, got, expected), default=0.0)
