"""The same random numbers in float16 and in float32."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_mp import private

X = np.random.default_rng(0).normal(size=(4, 50)).astype("float32")


@pytest.mark.parametrize(
    ("kind", "differs"),
    [
        ("Dropout", True),
        ("SpatialDropout1D", True),
        ("GaussianNoise", False),  # TensorFlow rounds numbers of float32
        ("GaussianDropout", False),
        ("AlphaDropout", False),
    ],
)
def test_a_layer_draws_the_same_in_float32(kind, differs):
    def make():
        return getattr(layers, kind)(0.5, seed=1)

    x = X.reshape(4, 10, 5)
    draws = private.draws.Draws()
    keras.config.set_dtype_policy("mixed_float16")
    with draws.noted():
        low = np.asarray(make()(x, training=True), "float32")
    keras.config.set_dtype_policy("float32")
    with draws.repeated():
        same = np.asarray(make()(x, training=True))
    other = np.asarray(make()(x, training=True))
    # A few roundings of float16; other numbers differ by about 1.
    np.testing.assert_allclose(low, same, rtol=4e-3, atol=4e-3)
    assert (np.abs(low - other).max() > 0.5) == differs


def test_without_a_block_nothing_is_replaced():
    backend = private.draws._random_of_backend()
    before = dict(vars(backend))
    with private.draws.Draws().noted():
        assert vars(backend)["dropout"] is not before["dropout"]
    assert vars(backend) == before


def test_seeds_of_the_layers_of_a_model():
    inner = keras.Sequential([keras.layers.Dropout(0.5, seed=3)])
    layers = [keras.layers.Dropout(0.5, seed=4), inner, inner, keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    states = private.draws.seeds_of(model)
    assert sorted(state.numpy()[0] for state in states) == [3, 4]
    before = [state.numpy().tolist() for state in states]
    with private.draws.seeds_set(states, [[7, 1], [8, 2]]):
        assert [state.numpy().tolist() for state in states] == [[7, 1], [8, 2]]
    assert [state.numpy().tolist() for state in states] == before
