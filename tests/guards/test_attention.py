"""Attention under a guard: Keras's float32 results, where float16 alone has none."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mp import policy_scope

RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(2, 5, 16)).astype("float32")
VALUE = RNG.normal(size=(2, 7, 16)).astype("float32")
MASK = RNG.uniform(size=(2, 5, 7)) < 0.7
MASK[0, 0] = False  # a query that may look at nothing


class Cached(layers.MultiHeadAttention):
    """Adds an argument and no computation, as KerasHub's attention with a cache."""

    def call(self, *args, cache=None, **kwargs):
        return super().call(*args, **kwargs)


LAYERS = {
    "subclass": lambda: Cached(2, 8),
    "multi_head": lambda: layers.MultiHeadAttention(2, 8),
    "multi_head_dropout": lambda: layers.MultiHeadAttention(2, 8, dropout=0.3),
    "grouped": lambda: layers.GroupQueryAttention(8, 4, 2),
    "grouped_dropout": lambda: layers.GroupQueryAttention(8, 4, 2, dropout=0.3),
}
SINGLE = {
    "dot": lambda: layers.Attention(),
    "scaled": lambda: layers.Attention(use_scale=True),
    "concat": lambda: layers.Attention(score_mode="concat"),
    "additive": lambda: layers.AdditiveAttention(),
}


def low_and_float32(make, low):
    """Return a layer under ``low`` and one in float32 with the same weights."""
    with policy_scope(f"mixed_{low}"):
        layer = make()
    reference = make()
    build(layer, reference)
    for mine, its in zip(layer.weights, reference.weights, strict=True):
        rounded = keras.ops.cast(keras.ops.cast(its, low), "float32")
        mine.assign(rounded)
        its.assign(rounded)
    return layer, reference


def rounded(x, low):
    return keras.ops.cast(keras.ops.cast(x, low), "float32")


# Two projections, scores, weights, values and the output projection round once each,
# in half units of 2**-11 or 2**-8, relative to values of about 1.
TOLERANCE = {"float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
@pytest.mark.parametrize("name", LAYERS)
def test_as_in_float32(name, mask, low):
    layer, reference = low_and_float32(LAYERS[name], low)
    query, value = rounded(QUERY, low), rounded(VALUE, low)
    result = layer(query, value, attention_mask=mask)
    assert keras.backend.standardize_dtype(result.dtype) == low
    expected = reference(query, value, attention_mask=mask)
    np.testing.assert_allclose(
        keras.ops.cast(result, "float32"), expected, atol=TOLERANCE[low]
    )


@pytest.mark.parametrize("name", ["multi_head", "grouped"])
def test_causal_masks_and_returned_scores(name):
    layer, reference = low_and_float32(LAYERS[name], "float16")
    query, value = rounded(QUERY, "float16"), rounded(VALUE, "float16")
    arguments = {"use_causal_mask": True, "return_attention_scores": True}
    for result, expected in zip(
        layer(query, value, **arguments),
        reference(query, value, **arguments),
        strict=True,
    ):
        np.testing.assert_allclose(
            keras.ops.cast(result, "float32"), expected, atol=TOLERANCE["float16"]
        )
    result = layer(query, query, use_causal_mask=True)
    expected = reference(query, query, use_causal_mask=True)
    np.testing.assert_allclose(
        keras.ops.cast(result, "float32"), expected, atol=TOLERANCE["float16"]
    )


def overflowing(make, guarded):
    """Return attention whose queries and keys are some thousands, in float16."""
    if guarded:
        return low_and_float32(make, "float16")
    layer, reference = make_plain(make), make()
    build(layer, reference)
    layer.set_weights(reference.get_weights())
    return layer, reference


def build(*made):
    for layer in made:
        single = type(layer) in (layers.Attention, layers.AdditiveAttention)
        shapes = (QUERY.shape, VALUE.shape)
        layer.build(list(shapes)) if single else layer.build(*shapes)


def make_plain(make):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return make()
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", [*LAYERS, "dot"])
def test_scores_beyond_float16(name):
    """Queries and keys of 1,000 fit, and 16 products of theirs do not."""
    make = {**LAYERS, **SINGLE}[name]
    query, value = rounded(1000 * QUERY, "float16"), rounded(1000 * VALUE, "float16")
    arguments = [[query, value]] if name == "dot" else [query, value]
    alone, _ = overflowing(make, guarded=False)
    assert not np.isfinite(keras.ops.cast(alone(*arguments), "float32")).all()
    layer, reference = overflowing(make, guarded=True)
    result = keras.ops.cast(layer(*arguments), "float32")
    assert np.isfinite(result).all()
    # The softmax picks one value each: equal but where two scores of 1e6 differ by
    # less than their rounding to 11 bits; the median row has no such pair.
    error = np.abs(result - reference(*arguments)).max(-1)
    assert np.median(error) <= 1000 * TOLERANCE["float16"]


def test_gradients_of_scores_beyond_float16():
    """What a query was divided by once came back in its gradient, beyond float16."""
    x = [2.0**14 * np.sign(rounded(a, "float16")) for a in (QUERY, VALUE)]
    layer, reference = low_and_float32(SINGLE["dot"], "float16")

    def gradients(layer):
        inputs = [tf.cast(a, layer.compute_dtype) for a in x]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = layer(inputs)
        scale = tf.fill(result.shape, tf.cast(2.0**-14, result.dtype))
        return tape.gradient(result, inputs, output_gradients=scale)

    for low, exact in zip(gradients(layer), gradients(reference), strict=True):
        assert np.isfinite(low).all()
        # Ties of exact scores stay ties; what is left is the rounding of products.
        size = np.abs(exact).max()
        np.testing.assert_allclose(tf.cast(low, "float32"), exact, atol=size / 100)


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_single_head_as_in_float32(name, masked, low):
    layer, reference = low_and_float32(SINGLE[name], low)
    inputs = [rounded(QUERY, low), rounded(VALUE, low)]
    mask = [None, keras.ops.convert_to_tensor(MASK[:, 1])] if masked else None
    result = layer(inputs, mask=mask)
    assert keras.backend.standardize_dtype(result.dtype) == low
    np.testing.assert_allclose(
        keras.ops.cast(result, "float32"),
        reference(inputs, mask=mask),
        atol=TOLERANCE[low],
    )


def test_a_subclass_is_left_to_its_author():
    class Own(layers.MultiHeadAttention):
        def _compute_attention(self, query, key, value, *args, **kwargs):
            return query, None

    with policy_scope("mixed_float16"):
        layer = Own(2, 8)
    layer(QUERY, VALUE)
    assert "_compute_attention" not in vars(layer)
