"""`keras.layers.BatchNormalization` in one kernel, where it trains in 16 bits."""

import functools

import keras
from keras import ops

from keras_mp import private
from keras_mp.guards.functions import is_call_guarded


def is_batch_normalization(layer):
    """Return whether ``layer`` is Keras's own, not a subclass that may do else."""
    return type(layer) is keras.layers.BatchNormalization


def guard(layer):
    """Have ``layer`` read and write 16 bits only, and compute in float32 in between.

    Keras's computes in float32 too, but writes what it was given in float32 to memory,
    and every step of the formula after it: in training that is most of the time of a
    convolutional network's step. The kernel (cuDNN's, oneDNN's) reads 16 bits and
    keeps float32 in registers.
    """
    if not is_call_guarded(layer):
        layer.call = _in_one_kernel(layer, layer.call)


def _in_one_kernel(layer, keras_call):
    @functools.wraps(keras_call)
    def call(inputs, training=None, mask=None):
        if not (training and mask is None and _fits(layer, inputs)):
            return keras_call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = layer.gamma if layer.scale else ops.ones(channels)
        beta = layer.beta if layer.center else ops.zeros(channels)
        outputs, mean, variance = private.batch_normalized(
            inputs, gamma, beta, layer.epsilon
        )
        for moving, value in (
            (layer.moving_mean, mean),
            (layer.moving_variance, variance),
        ):
            moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
        return outputs

    return call


def _fits(layer, inputs):
    """Return whether a kernel does what ``layer`` does with ``inputs`` in training."""
    rank = len(inputs.shape)
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    # XLA makes one pass of Keras's formula by itself.
    return (
        dtype == layer.compute_dtype
        and dtype in private.LOW_PRECISION
        and layer.variable_dtype == "float32"
        and layer.axis in (-1, rank - 1)
        and layer.trainable
        and not layer.synchronized
        and not getattr(layer, "renorm", False)  # Keras 3.12 has none
        and keras.backend.backend() == "tensorflow"
        and not private.in_xla()
    )
