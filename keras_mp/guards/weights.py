"""Layers that compute with their weights, not only on their inputs."""

import functools

import keras

from keras_mp import private


def guard(layer):
    """Have `keras.layers.SpectralNormalization` read its weights as they are stored.

    It assigns the kernel that it has normalized: read in the compute dtype, the float32
    master weights would be rounded to it, in every step.
    """
    if type(layer) is not keras.layers.SpectralNormalization:
        return False
    if not hasattr(layer.call, "__wrapped__"):
        layer.call = _on_stored(layer.call)
    return True


def _on_stored(call):
    @functools.wraps(call)
    def on_stored(*args, **kwargs):
        with private.variables_as_stored():
            return call(*args, **kwargs)

    return on_stored
