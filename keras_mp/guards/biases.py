"""Biases of products whose gradient is summed in float32 on CPUs too.

Keras adds a bias by ``tf.nn.bias_add``. Its gradient is a sum over all rows and
positions, which TensorFlow's bfloat16 kernel for CPUs computes in bfloat16. Its error
after 1,024 numbers is some 40 roundings, while the true gradient of a bias before a
normalization is nearly zero. The gradient of a plain addition is summed in float32,
rounded once, and as fast.
"""

import functools

import keras

from keras_mp import private
from keras_mp.wrapping import wrap_once


def guard(layer: keras.layers.Layer) -> None:
    """Make ``layer``, a product of Keras's, sum the gradient of its bias in float32.

    Changes nothing where TensorFlow does that itself: in float16, on GPUs, under XLA.
    """
    wrap_once(layer, "call", "bias", functools.partial(_adding, layer))


def _adding(layer, call):
    @functools.wraps(call)
    def adding(*args, **kwargs):
        if not _is_summed_in_bfloat16(layer):
            return call(*args, **kwargs)
        changed = {"bias": None, "use_bias": False, "activation": _with_bias(layer)}
        changed = {name: new for name, new in changed.items() if name in vars(layer)}
        with private.attributes.attributes_for_now([(layer, changed)]):
            return call(*args, **kwargs)

    return adding


def _is_summed_in_bfloat16(layer):
    bias = vars(layer).get("bias")
    return (
        layer.compute_dtype == "bfloat16"
        and bias is not None
        and len(bias.shape) == 1
        and layer.quantization_mode is None
        and private.kernels.is_only_on_cpus()
    )


def _with_bias(layer):
    """Return the activation function of ``layer``, which adds the bias first."""
    bias, activation = layer.bias, layer.activation
    channels_first = getattr(layer, "data_format", None) == "channels_first"

    def with_bias(outputs):
        vector = keras.ops.cast(bias, outputs.dtype)
        if channels_first:
            vector = keras.ops.reshape(vector, (-1, *[1] * (len(outputs.shape) - 2)))
        # Not `keras.ops.add`, which is `tf.nn.bias_add`.
        outputs = outputs + vector
        return outputs if activation is None else activation(outputs)

    return with_bias
