"""Products remember how to compute all of it in float32."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_mp import flow, guards, policy_scope

X = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")

MAKERS = {
    "dense": lambda: layers.Dense(3, "relu"),
    "einsum": lambda: layers.EinsumDense("abcd,de->abce", (None, None, 3)),
    "convolution": lambda: layers.Conv2D(3, 3),
    "transposed": lambda: layers.Conv2DTranspose(3, 3),
    "depthwise": lambda: layers.DepthwiseConv2D(3),
    "separable": lambda: layers.SeparableConv2D(3, 3),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_they_are_computed_again_in_float32(name, low):
    with policy_scope(f"mixed_{low}"):
        layer = MAKERS[name]()
    plain = MAKERS[name]()
    result = layer(X)
    plain.build(X.shape)
    plain.set_weights(layer.get_weights())
    assert keras.backend.standardize_dtype(result.dtype) == low
    x = keras.ops.cast(keras.ops.cast(X, low), "float32")  # Keras rounds what comes in
    # Sums in another order, at most.
    np.testing.assert_allclose(
        flow.widened(result, products=True), plain(x), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(
        flow.widened(result), keras.ops.cast(result, "float32")
    )


def test_layers_in_float32_and_of_ones_own_are_left_alone():
    class Own(layers.Dense):
        def call(self, x):
            return super().call(x)

    with policy_scope("mixed_float16"):
        own = Own(3)
    own(X)
    guards.guard(own)
    assert not guards.products.is_product(own)
    result = layers.Dense(3)(X)
    assert flow.widened(result, products=True) is result
