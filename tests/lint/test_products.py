"""Lint knows the matrix products of every layer that has some in low precision."""

import keras
import pytest
from keras import layers
from support.lint import LOW, found, model_of

from keras_mp import precision_lists

WITHOUT_PRODUCTS = {
    "AdditiveAttention": "it has no weights to multiply with",
    "Attention": "it has no weights to multiply with",
    "DepthwiseConv1D": "it is on no tensor core",
    "DepthwiseConv2D": "it is on no tensor core",
}


def model_with(cls):
    """Return a model of one layer of this class, with 3 features in and out."""
    name, rank = cls.__name__, [int(digit) for digit in cls.__name__ if digit.isdigit()]
    if name.endswith("Attention"):
        inputs = keras.Input((8, 3))
        if name in WITHOUT_PRODUCTS:
            return keras.Model(inputs, cls(**LOW)([inputs, inputs]))
        args = (2, 3) if name == "MultiHeadAttention" else (3, 2, 2)
        return keras.Model(inputs, cls(*args, **LOW)(inputs, inputs))
    if name.endswith("Cell"):
        return model_of(layers.RNN(cls(3, **LOW), **LOW), shape=(4, 3))
    if name == "EinsumDense":
        return model_of(cls("ab,bc->ac", 3, **LOW), shape=(3,))
    if name == "Dense":
        return model_of(cls(3, **LOW), shape=(3,))
    if not rank:
        return model_of(cls(3, **LOW), shape=(4, 3))
    shape = (8,) * (rank[0] + ("LSTM" in name)) + (3,)
    args = (3,) if name.startswith("Depthwise") else (3, 3)
    return model_of(cls(*args, **LOW), shape=shape)


@pytest.mark.parametrize("cls", precision_lists.ALLOW, ids=lambda cls: cls.__name__)
def test_every_layer_with_products_in_low_precision(cls):
    findings = found(model_with(cls), "alignment")
    assert bool(findings) is (cls.__name__ not in WITHOUT_PRODUCTS)
