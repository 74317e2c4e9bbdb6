"""Activation functions are exact where it matters, whatever they are called."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_mp
from keras_mp import policy_scope

X = np.array([[0.0, 12.0, 30.0], [-8.0, 0.25, 5.0]], "float32")


def predicted(layer, policy):
    with policy_scope(policy):
        model = keras.Sequential([keras.Input((3,)), layer()])
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    return model.predict(X, verbose=0)


def dense(function):
    return lambda: layers.Dense(3, activation=function, kernel_initializer="identity")


GIVEN = {
    "dense": dense,
    "activation": lambda function: lambda: layers.Activation(function),
    "lambda": lambda function: lambda: layers.Lambda(function),
}

STEEP = {
    "tf softmax": tf.nn.softmax,
    "ops softmax": ops.softmax,
    "tf exp": tf.exp,
    "around": lambda x: 2 * tf.exp(x),
    "log sum exp": lambda x: x - tf.reduce_logsumexp(x, axis=-1, keepdims=True),
}
OTHERS = {
    "sigmoid": keras.activations.sigmoid,
    "tanh": keras.activations.tanh,
    "gelu": keras.activations.gelu,
    "silu": keras.activations.silu,
    "tf sigmoid": tf.nn.sigmoid,
    "own": lambda x: x * tf.nn.sigmoid(x),
}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", STEEP | OTHERS)
def test_a_model_returns_what_float32_gives(name, given, policy):
    function = (STEEP | OTHERS)[name]
    result = predicted(GIVEN[given](function), policy)
    # The numbers of X are exact in 16 bits.
    np.testing.assert_allclose(result, function(X), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", OTHERS)
def test_inside_a_model_they_stay_in_16_bits(name):
    seen = []

    def noting(x):
        seen.append(keras.backend.standardize_dtype(x.dtype))
        return OTHERS[name](x)

    with policy_scope("mixed_float16"):
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(3, noting), layers.Dense(2)]
        )
    del seen[:]
    keras_mp.compile(model, "sgd", "binary_crossentropy", jit_compile=False)
    model.fit(X, np.ones((2, 2)), verbose=0)
    assert seen[-1] == "float16"


def test_functions_that_need_16_bits_are_left_alone():
    def narrow(x):
        return tf.exp(x) * tf.constant(2.0, "float16")

    with policy_scope("mixed_float16"):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(3, narrow)])
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    assert model.predict(np.zeros((1, 3)), verbose=0)[0, 0] == 2.0


def test_the_layer_shows_and_saves_the_functions_it_was_given(tmp_path):
    @keras.saving.register_keras_serializable("activations")
    def own(x):
        return tf.exp(x)

    with policy_scope("mixed_float16"):
        dense = layers.Dense(3, own)
        model = keras.Sequential(
            [keras.Input((3,)), dense, layers.Lambda(lambda x: 2.0 * x)]
        )
    keras_mp.compile(model, "sgd", "mse")
    expected = model.predict(X / 9, verbose=0)
    assert dense.activation is own
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(X / 9, verbose=0), expected)


HEADS = [("sigmoid", "binary_crossentropy"), ("softmax", "categorical_crossentropy")]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize(("function", "loss"), HEADS)
def test_a_confident_mistake_has_a_gradient(function, loss, eagerly, policy):
    x, y = np.ones((4, 1), "float32"), np.array([[0.0, 1.0]] * 4, "float32")

    def gradient(policy):
        kernel = keras.initializers.Constant([[20.0, -20.0]])
        model = keras.Sequential(
            [keras.Input((1,)), layers.Dense(2, function, kernel_initializer=kernel)]
        )
        keras_mp.compile(
            model, keras.optimizers.SGD(1.0), loss, policy=policy, run_eagerly=eagerly
        )
        before = model.get_weights()[0]
        model.fit(x, y, batch_size=4, verbose=0)
        return before - model.get_weights()[0]

    expected = gradient("float32")
    assert np.abs(expected).min() > 0.4
    # A sum of four gradients in 8 or 11 bits.
    np.testing.assert_allclose(gradient(policy), expected, rtol=2**-7)


class Ends(keras.Model):
    """A model of a user's own that ends with a function."""

    def __init__(self, function):
        super().__init__()
        self.dense = layers.Dense(1, kernel_initializer="ones")
        self.function = function

    def call(self, inputs):
        return self.function(self.dense(inputs))


ENDS = np.array([[12.0], [0.5]], "float32")


@pytest.mark.parametrize(
    ("function", "right"),
    [
        (lambda x: x, ENDS),
        (keras.activations.sigmoid, 1 / (1 + np.exp(-ENDS))),
    ],
    ids=["identity", "sigmoid"],
)
def test_a_model_returns_the_result_of_a_function_of_its_own(function, right):
    with policy_scope("mixed_float16"):
        model = Ends(function)
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    result = model.predict(ENDS, verbose=0)
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
