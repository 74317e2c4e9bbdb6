"""Layers that compute with their weights, not only on their inputs."""

import functools

import keras

from keras_mp import private
from keras_mp.guards.functions import is_call_guarded


def computes_with_weights(layer):
    """Return whether ``layer`` is one that assigns what it computes with weights."""
    return type(layer) is keras.layers.SpectralNormalization


def guard(layer):
    """Have `keras.layers.SpectralNormalization` read its weights as they are stored.

    It assigns the kernel that it has normalized: read in the compute dtype, the float32
    master weights would be rounded to it, in every step.
    """
    if not is_call_guarded(layer):
        layer.call = _on_stored(layer.call)


def _on_stored(call):
    @functools.wraps(call)
    def on_stored(*args, **kwargs):
        with private.variables_as_stored():
            return call(*args, **kwargs)

    return on_stored
