"""Functions of layers that are not on the lists: their results remember float32."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import policy_scope


class Ends(keras.Model):
    """A model of a user's own that ends with a function."""

    def __init__(self, function):
        super().__init__()
        self.dense = layers.Dense(1, kernel_initializer="ones")
        self.function = function

    def call(self, inputs):
        return self.function(self.dense(inputs))


X = np.array([[12.0], [0.5]], "float32")


@pytest.mark.parametrize(
    ("function", "right"),
    [
        (lambda x: x, X),
        (keras.activations.sigmoid, 1 / (1 + np.exp(-X))),
    ],
    ids=["identity", "sigmoid"],
)
def test_a_model_returns_the_result_of_a_function_of_its_own(function, right):
    with policy_scope("mixed_float16"):
        model = Ends(function)
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    result = model.predict(X, verbose=0)
    assert result.dtype == "float32"
    np.testing.assert_allclose(result, right, rtol=2**-11)  # a rounding to float16


@pytest.mark.parametrize("function", [keras.activations.sigmoid, keras.ops.sigmoid])
def test_a_loss_finds_the_logits_behind_a_function_in_code(function):
    class EndsInCode(Ends):
        def call(self, inputs):
            return function(self.dense(inputs))

    with policy_scope("mixed_float16"):
        model = EndsInCode(None)
    keras_mp.compile(model, keras.optimizers.SGD(1.0), "binary_crossentropy")
    logit = np.array([[12.0]], "float32")  # of which a sigmoid in float16 is 1
    logs = model.test_on_batch(logit, np.zeros((1, 1)))
    assert logs == pytest.approx(12.0, rel=1e-4)  # the loss is log(1 + exp(12))
