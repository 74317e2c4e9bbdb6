"""Methods are wrapped once for each mark."""

import functools

import keras
import numpy as np
from keras import layers

from keras_mp import policy_scope
from keras_mp.wrapping import is_wrapped, wrap_once


def adding(call):
    @functools.wraps(call)
    def add(*args, **kwargs):
        return call(*args, **kwargs) + 1

    return add


def test_each_mark_wraps_once():
    layer = layers.Dense(2, kernel_initializer="zeros")
    for mark in ("one", "two", "one"):
        wrap_once(layer, "call", mark, adding)
    np.testing.assert_array_equal(layer(np.ones((1, 3))), [[2, 2]])
    assert is_wrapped(layer, "call", "one") and is_wrapped(layer, "call", "two")
    assert not is_wrapped(layer, "call", "three")
    assert not is_wrapped(layers.Dense(2), "call", "one")


def test_a_method_that_is_replaced_is_wrapped_again():
    layer = layers.Dense(2, kernel_initializer="zeros")
    wrap_once(layer, "call", "one", adding)
    decorated = layer.call = adding(layer.call)
    assert is_wrapped(layer, "call", "one")
    wrap_once(layer, "call", "one", adding)
    assert layer.call is decorated
    layer.call = lambda inputs: 2 * inputs
    assert not is_wrapped(layer, "call", "one")
    wrap_once(layer, "call", "one", adding)
    np.testing.assert_array_equal(layer(np.ones((1, 3))), [[3, 3, 3]])


def test_the_mark_of_one_layer_says_nothing_of_another():
    layer, other = layers.Dense(2), layers.Dense(2)
    wrap_once(layer, "call", "one", adding)
    other.call = adding(layer.call)
    assert not is_wrapped(other, "call", "one")


def test_guards_know_each_other():
    """A decorator is no guard, and one guard is not another."""
    ids = np.array([[1.0, 2049.0, 70001.0]], "float32")  # float16 has only the first
    with policy_scope("mixed_float16"):
        layer = layers.SpectralNormalization(layers.Embedding(80_000, 2))
    layer(ids)
    table = layer.layer.embeddings
    before = table.numpy()
    result = layer(ids, training=True)
    after = table.numpy()
    assert np.any(after != after.astype("float16"))  # not rounded in a step
    np.testing.assert_allclose(after * (before[0, 0] / after[0, 0]), before, rtol=1e-5)
    rows = keras.ops.take(table, ids.astype("int32"), axis=0)
    np.testing.assert_allclose(result, rows, rtol=2**-10)
