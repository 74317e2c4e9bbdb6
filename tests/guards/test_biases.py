"""Biases in bfloat16 get gradients that were summed in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mp import policy_scope

X = np.random.default_rng(0).normal(size=(64, 8, 8, 4)).astype("float32")

MAKERS = {
    "dense": lambda: layers.Dense(3),
    "with activation": lambda: layers.Dense(3, "sigmoid"),
    "einsum": lambda: layers.EinsumDense(
        "abcd,de->abce", (None, None, 3), bias_axes="e"
    ),
    "einsum, two axes": lambda: layers.EinsumDense(
        "abcd,dce->abce", (8, 8, 3), bias_axes="ce"
    ),
    "convolution": lambda: layers.Conv2D(3, 3, padding="same"),
    "transposed": lambda: layers.Conv2DTranspose(3, 3, padding="same"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same"),
    "separable": lambda: layers.SeparableConv2D(3, 3, padding="same"),
}


def gradient(layer):
    """Return the outputs, and the gradient of the bias for random ones of them."""
    bias = [each for each in layer.trainable_variables if "bias" in each.name]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            outputs = layer(X)
            random = tf.random.stateless_normal(tf.shape(outputs), (1, 2))
            loss = tf.reduce_sum(outputs * tf.cast(random, outputs.dtype))
        return outputs, tape.gradient(loss, bias[0].value)

    return step()


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_rounded_once(name):
    keras.utils.set_random_seed(0)
    plain = MAKERS[name]()
    plain.build(X.shape)
    expected, right = gradient(plain)
    with policy_scope("mixed_bfloat16"):
        layer = MAKERS[name]()
    layer.build(X.shape)
    layer.set_weights(plain.get_weights())
    outputs, found = gradient(layer)
    assert outputs.dtype == tf.bfloat16 and found.dtype == tf.float32
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, atol=0.05)
    # 4,096 numbers near 1, each of which was rounded: their sum moves by 0.1 at most.
    # Summed in bfloat16, it moves by 1 to 9.
    np.testing.assert_allclose(found, right, atol=0.5)


def test_layers_look_as_before():
    with policy_scope("mixed_bfloat16"):
        layer = layers.Dense(3, "relu")
    layer(X)
    assert layer.use_bias and layer.activation is keras.activations.relu
    assert layer.bias is layer.trainable_variables[1]


def test_without_a_bias_and_in_float16_nothing_changes():
    with policy_scope("mixed_bfloat16"):
        bare = layers.Dense(3, use_bias=False)
    assert bare(X).dtype == tf.bfloat16
    with policy_scope("mixed_float16"):
        layer = layers.Dense(3)
    keras.utils.set_random_seed(0)
    found = layer(X)
    plain = layers.Dense(3, dtype="mixed_float16")
    plain.build(X.shape)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(found, plain(X))
