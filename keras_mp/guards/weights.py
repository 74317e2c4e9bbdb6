"""Layers that compute with their weights, not only on their inputs."""

import functools

import keras

from keras_mp import private
from keras_mp.wrapping import is_wrapped, wrap_once

_MARK = "weights"


def computes_with_weights(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` assigns weights that it computes from its weights."""
    return type(layer) is keras.layers.SpectralNormalization


def guard(layer: keras.layers.Layer) -> None:
    """Make `keras.layers.SpectralNormalization` read its weights as they are stored.

    It assigns the normalized kernel. If it read the kernel in the compute dtype, every
    step would round the float32 master weights.
    """
    wrap_once(layer, "call", _MARK, _on_stored)


def is_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` reads its weights as they are stored."""
    return is_wrapped(layer, "call", _MARK)


def _on_stored(call):
    @functools.wraps(call)
    def on_stored(*args, **kwargs):
        with private.variables.variables_as_stored():
            return call(*args, **kwargs)

    return on_stored
