"""Functions of a layer: its call, activations, activity regularizer, and add_loss."""

import functools

from keras_mp import lists, numerics, private
from keras_mp.ops import float32

_ACTIVATIONS = ("activation", "recurrent_activation")


def computes_inside(layer):
    """Return whether ``layer`` is on `lists.INSIDE`."""
    return lists.matches_any(lists.INSIDE, layer, layer.name)


def is_call_guarded(layer):
    """Return whether the ``call`` of ``layer`` is one that guards put around it."""
    return _is_wrapped(layer.call)


def guard_call(layer):
    """Have a layer on `lists.INSIDE` compute in float32, and hand on what came in."""
    if not is_call_guarded(layer):
        layer.call = float32(layer.call)


def has_steep_activations(layer):
    """Return whether any activation function of ``layer`` needs float32."""
    return bool(_steep_activations(layer))


def are_activations_guarded(layer):
    """Return whether all activation functions are guarded that need it."""
    return all(map(_is_wrapped, _steep_activations(layer).values()))


def guard_activations(layer):
    """Have the steep activation functions of ``layer`` computed in float32.

    The result of those in `lists.FLOAT32_FUNCTIONS` stays in float32, for softmax
    probabilities below float16's smallest number and exponentials above its largest. A
    recurrent cell's goes back to the dtype of its state.
    """
    for name, function in _steep_activations(layer).items():
        if not _is_wrapped(function):
            stays = lists.is_float32_function(function)
            in_cell = hasattr(layer, "state_size")
            dtype = "float32" if stays and not in_cell else None
            setattr(layer, name, float32(function, output_dtype=dtype))


def _steep_activations(layer):
    # A recurrent layer only shows what its cell has.
    own = {name: vars(layer).get(name) for name in _ACTIVATIONS}
    return {
        name: function
        for name, function in own.items()
        if lists.is_steep_function(function)
    }


def _is_wrapped(function):
    return hasattr(function, "__wrapped__")


def has_regularizer(layer):
    """Return whether ``layer`` has an activity regularizer."""
    return layer.activity_regularizer is not None


def is_regularizer_guarded(layer):
    """Return whether the activity regularizer of ``layer`` is guarded."""
    return type(layer.activity_regularizer) is _InFloat32


def guard_regularizer(layer):
    """Have the activity regularizer of ``layer`` add up in float32."""
    if not is_regularizer_guarded(layer):
        layer.activity_regularizer = _InFloat32(layer.activity_regularizer)


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


def may_add_losses(layer):
    """Return whether ``layer`` is of the user's own class, which may add losses."""
    return not private.is_of_keras(layer)


def is_add_loss_guarded(layer):
    """Return whether the losses that ``layer`` adds are cast."""
    return "add_loss" in vars(layer)


def guard_add_loss(layer):
    """Have the losses that a layer of the user's own adds cast to float32.

    Keras adds them to the loss, which is in float32, and to each other as they are.
    """
    if not is_add_loss_guarded(layer):
        layer.add_loss = _widened(layer.add_loss)


def _widened(add_loss):
    @functools.wraps(add_loss)
    def in_float32(loss):
        return add_loss(numerics.cast_floats(loss, "float32"))

    return in_float32
