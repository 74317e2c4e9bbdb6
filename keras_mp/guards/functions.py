"""Functions of a layer: its call, activity regularizer, and add_loss."""

import functools

import keras

from keras_mp import casts, precision_lists, private
from keras_mp.ops import float32
from keras_mp.wrapping import is_wrapped, wrap_once


def computes_inside(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` is on `precision_lists.INSIDE`."""
    own = private.layers.is_subclass_of_the_users(layer)
    return not own and precision_lists.matches_any(
        precision_lists.INSIDE, layer, layer.name
    )


def is_call_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether the ``call`` of ``layer`` is computed in float32."""
    return is_wrapped(layer, "call", "all of it")


def guard_call(layer: keras.layers.Layer) -> None:
    """Make a layer compute in float32, and return the dtype of its inputs."""
    wrap_once(layer, "call", "all of it", float32)


def has_regularizer(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` has an activity regularizer."""
    return layer.activity_regularizer is not None


def is_regularizer_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether the activity regularizer of ``layer`` is guarded."""
    return type(layer.activity_regularizer) is _InFloat32


def guard_regularizer(layer: keras.layers.Layer) -> None:
    """Make the activity regularizer of ``layer`` add up in float32."""
    if not is_regularizer_guarded(layer):
        layer.activity_regularizer = _InFloat32(layer.activity_regularizer)


class _InFloat32:
    """A regularizer that computes in float32, and otherwise looks like the original.

    Layers save their regularizer by its class, so it keeps its class.
    """

    def __init__(self, regularizer):
        self.__dict__["_regularizer"] = regularizer

    def __call__(self, outputs):
        return float32(self._regularizer.__call__, output_dtype="float32")(outputs)

    def __getattr__(self, name):
        return getattr(self._regularizer, name)

    @property
    def __class__(self):  # pyright: ignore
        return self._regularizer.__class__


def may_add_losses(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` is of the user's own class, which may add losses."""
    return not private.layers.is_of_keras(layer)


def is_add_loss_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether the losses that ``layer`` adds are cast."""
    return is_wrapped(layer, "add_loss", "cast")


def guard_add_loss(layer: keras.layers.Layer) -> None:
    """Cast losses that a layer of the user's own adds to float32.

    Keras sums them without a cast, and adds the sum to the loss, which is in float32.
    """
    wrap_once(layer, "add_loss", "cast", _widened)


def _widened(add_loss):
    @functools.wraps(add_loss)
    def in_float32(loss):
        return add_loss(casts.cast_floats(loss, "float32"))

    return in_float32
