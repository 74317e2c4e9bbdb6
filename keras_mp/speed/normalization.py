"""`keras.layers.BatchNormalization` in one kernel, where it trains in 16 bits."""

import functools

import keras
from keras import ops

from keras_mp import dtypes, private
from keras_mp.wrapping import is_wrapped, wrap_once

_MARK = "normalization"


def is_batch_normalization(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` is of Keras's own class; a subclass may differ."""
    return type(layer) is keras.layers.BatchNormalization


def guard(layer: keras.layers.Layer) -> None:
    """Make ``layer`` read and write 16 bits only, and compute in float32 in between.

    Keras's layer computes in float32 too, but writes its inputs in float32 to memory,
    and so each step of the formula. In training that takes most of the time of a
    convolutional network's step. The kernel (of cuDNN or oneDNN) reads 16 bits and
    keeps float32 in registers.
    """
    wrap_once(layer, "call", _MARK, functools.partial(_in_one_kernel, layer))


def is_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` trains by one kernel."""
    return is_wrapped(layer, "call", _MARK)


def _in_one_kernel(layer, call):
    @functools.wraps(call)
    def in_one_kernel(inputs, training=None, mask=None):
        if training and mask is None and _fits(layer, inputs):
            return _trained(layer, inputs)
        return call(inputs, training=training, mask=mask)

    return in_one_kernel


def _trained(layer, inputs):
    """Return ``inputs`` normalized by their own moments, and move the averages."""
    channels = inputs.shape[-1]
    gamma = layer.gamma if layer.scale else ops.ones(channels)
    beta = layer.beta if layer.center else ops.zeros(channels)
    outputs, *moments = private.kernels.batch_normalized(
        inputs, gamma, beta, layer.epsilon
    )
    moving = (layer.moving_mean, layer.moving_variance)
    for average, value in zip(moving, moments, strict=True):
        average.assign(average * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def _fits(layer, inputs):
    """Return whether a kernel does what ``layer`` does with ``inputs`` in training."""
    rank = len(inputs.shape)
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    # XLA computes Keras's formula in one pass by itself.
    return (
        dtype == layer.compute_dtype
        and dtype in dtypes.LOW_PRECISION
        and layer.variable_dtype == "float32"
        and layer.axis in (-1, rank - 1)
        and layer.trainable
        and not layer.synchronized
        and not getattr(layer, "renorm", False)  # Keras 3.12 has none
        and keras.backend.backend() == "tensorflow"
        and not private.tracing.in_xla()
    )
