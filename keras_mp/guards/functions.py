"""Functions of a layer: its call, activations, activity regularizer, and add_loss."""

import functools

from keras_mp import lists, numerics, private
from keras_mp.ops import float32

_ACTIVATIONS = ("activation", "recurrent_activation")


def guard_call(layer):
    """Have a layer on `lists.INSIDE` compute in float32, and hand on what came in."""
    if not lists.matches_any(lists.INSIDE, layer, layer.name):
        return False
    if not hasattr(layer.call, "__wrapped__"):
        layer.call = float32(layer.call)
    return True


def guard_activations(layer):
    """Have the steep activation functions of ``layer`` computed in float32.

    The result of those in `lists.FLOAT32_FUNCTIONS` stays in float32, for softmax
    probabilities below float16's smallest number and exponentials above its largest. A
    recurrent cell's goes back to the dtype of its state.
    """
    # A recurrent layer only shows what its cell has.
    steep = [name for name in _ACTIVATIONS if _is_steep(vars(layer).get(name))]
    for name in steep:
        function = getattr(layer, name)
        if not hasattr(function, "__wrapped__"):
            stays = lists.is_float32_function(function)
            in_cell = hasattr(layer, "state_size")
            dtype = "float32" if stays and not in_cell else None
            setattr(layer, name, float32(function, output_dtype=dtype))
    return bool(steep)


def _is_steep(function):
    return lists.is_float32_function(function) or lists.is_inside_function(function)


def guard_regularizer(layer):
    """Have the activity regularizer of ``layer`` add up in float32."""
    regularizer = layer.activity_regularizer
    if regularizer is None:
        return False
    if type(regularizer) is not _InFloat32:
        layer.activity_regularizer = _InFloat32(regularizer)
    return True


class _InFloat32:
    """A regularizer, called in float32; to all who ask, saving included, itself.

    Layers call their regularizer and save it by its class, so it keeps its class.
    """

    def __init__(self, regularizer):
        self.__dict__["_regularizer"] = regularizer

    def __call__(self, outputs):
        return float32(self._regularizer.__call__, output_dtype="float32")(outputs)

    def __getattr__(self, name):
        return getattr(self._regularizer, name)

    @property
    def __class__(self):
        return self._regularizer.__class__


def guard_add_loss(layer):
    """Have the losses that a layer of the user's own adds cast to float32.

    Keras adds them to the loss, which is in float32, and to each other as they are.
    """
    if private.is_of_keras(layer):
        return False
    if "add_loss" not in vars(layer):
        layer.add_loss = _widened(layer.add_loss)
    return True


def _widened(add_loss):
    @functools.wraps(add_loss)
    def in_float32(loss):
        return add_loss(numerics.cast_floats(loss, "float32"))

    return in_float32
