"""What Keras keeps private of attention is there on every supported version."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_mp.private import attention

SEVERAL = {
    "multi_head": lambda **options: layers.MultiHeadAttention(2, 3, **options),
    "grouped": lambda **options: layers.GroupQueryAttention(3, 2, 1, **options),
}
X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")


def test_parts_are_methods_of_keras_until_they_are_replaced():
    class Own(layers.Attention):
        def _apply_scores(self, scores, value, *args, **kwargs):
            return value, scores

    class Named(layers.Attention):
        pass

    parts = attention.parts_of(Named())
    assert all(callable(getattr(Named, part)) for part in parts) and parts
    assert attention.parts_of(Own()) == attention.parts_of(layers.Dense(1)) == ()


@pytest.mark.parametrize("name", SEVERAL)
def test_attention_of_several_heads_from_its_parts(name):
    layer = SEVERAL[name](flash_attention=False)
    outputs, expected = layer(X, X, return_attention_scores=True, use_causal_mask=True)
    assert outputs.shape == X.shape and not attention.uses_flash(layer)
    # Grouped attention notes what it is called for.
    assert attention.returns_scores(layer) is (name == "grouped")
    query, key, value = (
        dense(X) for dense in (layer._query_dense, layer._key_dense, layer._value_dense)
    )
    if name == "grouped":
        key, value = (ops.repeat(each, 2, axis=2) for each in (key, value))
    parts = attention.scores_of(layer)
    equation = f"{parts.queries},{parts.keys}->{parts.scores}"
    scores = ops.einsum(equation, query, key) * parts.scale
    assert parts.scale == pytest.approx(3**-0.5)
    mask = attention.with_causal_mask(layer, None, query, value)
    weights = attention.masked_softmax(layer, scores, mask)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    heads = attention.values_weighted(layer, weights, value, training=False)
    np.testing.assert_allclose(layer._output_dense(heads), outputs, atol=1e-5)
    assert [key.shape[axis] for axis in parts.key_axes] == [5]
    assert keras.backend.standardize_dtype(mask.dtype) == "bool"
