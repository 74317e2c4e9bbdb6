"""Mask values that a dtype does not hold are found in the code that masks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mp


class InCode(layers.Layer):
    def call(self, x):
        return ops.softmax(ops.cast(x > 8, x.dtype) * -1e9)


class OfTheClass(layers.Layer):
    masked = -1e9

    def call(self, x):
        return ops.softmax(ops.cast(x > 8, x.dtype) * self.masked)


class OfABaseClass(OfTheClass):
    pass


class OfTheLayer(OfTheClass):
    masked = 0.0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.masked = -1e9


class Whole(layers.Layer):
    def call(self, x):
        return ops.softmax(ops.where(x > 8, x, -(10**9)))


MASK = -(10**9)


class OfTheModule(layers.Layer):
    def call(self, x):
        return ops.softmax(ops.where(x > 8, x, MASK))


def of_a_function_around(**kwargs):
    mask = -1e9

    class Inner(layers.Layer):
        def call(self, x):
            return ops.softmax(ops.where(x > 8, x, mask))

    return Inner(**kwargs)


def culprit_of(kind):
    """Return what is wrong with a model of a layer, which reads numbers up to 9."""
    with keras_mp.policy_scope("mixed_float16"):
        layer = kind(name="masked")
        first = layers.Dense(4, kernel_initializer="identity")
        model = keras.Sequential(
            [keras.Input((4,)), first, layer, layers.Dense(1)], name="net"
        )
    keras_mp.compile(model, "sgd", "mse")
    x = np.linspace(-9.0, 9.0, 32).reshape(8, 4)
    (culprit,) = keras_mp.diagnose(model, x, x[:, :1]).culprits
    assert culprit.layer == "net/masked"
    return culprit


MASKS = [
    *(InCode, OfTheClass, OfABaseClass, OfTheLayer),
    *(Whole, OfTheModule, of_a_function_around),
]


# NumPy, by which TensorFlow makes the constant -1e9 of float16.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_value_is_found_in_code_and_in_attributes(kind):
    culprit = culprit_of(kind)
    assert "its code holds -1e+09, a mask value" in culprit.evidence
    assert "-32752" in culprit.fix


class Sized(layers.Layer):
    def call(self, x):
        return 6e4 * x[:1_000_000]


def test_a_whole_number_above_0_is_a_size_and_no_mask_value():
    assert "mask value" not in culprit_of(Sized).evidence
