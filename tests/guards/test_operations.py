"""Operations in the graph of a Functional model, in float32 where they have to be."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mp

LARGE = np.full((2, 64), 300.0, "float32")  # squares of which are beyond float16


def model_of(function, features=64):
    inputs = keras.Input((features,))
    identity = layers.Dense(features, kernel_initializer="identity")(inputs)
    return keras.Model(inputs, function(identity))


def predicted(function, x, policy="mixed_float16"):
    with keras_mp.policy_scope(policy):
        model = model_of(function, x.shape[-1])
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    return model.predict(x, verbose=0)


SAFE = {
    "norm": lambda x: x / ops.sqrt(ops.sum(x * x, axis=-1, keepdims=True)),
    "mean of squares": lambda x: ops.sqrt(ops.mean(ops.multiply(x, x), axis=-1)),
    "variance": lambda x: ops.var(x * ops.arange(64, dtype="float32"), axis=-1),
    "exp": lambda x: ops.exp(x / 10.0),
    "softmax": lambda x: ops.softmax(x * ops.arange(64, dtype="float32") / 64),
    "logsumexp": lambda x: ops.logsumexp(x, axis=-1),
}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", SAFE)
def test_they_are_what_float32_gives(name, policy):
    expected = predicted(SAFE[name], LARGE, "float32")
    result = predicted(SAFE[name], LARGE, policy)
    assert np.isfinite(expected).all()
    # 300 and its products with powers of two are exact; what is rounded is an
    # exponent of up to 300, in 8 or 11 bits.
    bits = 2.0 ** -(7 if policy == "mixed_bfloat16" else 10)
    rtol = 1.2 if name == "softmax" else bits
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=1e-7)


def test_operations_that_are_safe_stay_in_16_bits():
    with keras_mp.policy_scope("mixed_float16"):
        model = model_of(lambda x: ops.add(layers.Dense(4)(x * 2.0 + x), 1.0))
    keras_mp.convert(model, "mixed_float16")
    seen = []
    for operation in model.operations:
        if type(operation).__name__ in ("Multiply", "Add") and not isinstance(
            operation, layers.Layer
        ):
            inner = operation.call

            def noting(*args, inner=inner, **kwargs):
                result = inner(*args, **kwargs)
                seen.append(keras.backend.standardize_dtype(result.dtype))
                return result

            operation.call = noting
    model(LARGE / 300)
    assert seen == ["float16"] * 3


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "silu", "gelu"])
def test_an_activation_that_ends_the_model_is_exact(name):
    x = np.array([[-9.0, -5.0, 0.1, 7.0]], "float32")
    expected = predicted(getattr(ops, name), x, "float32")
    result = predicted(getattr(ops, name), x, "mixed_bfloat16")
    exact = np.asarray(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    np.testing.assert_allclose(result, getattr(ops, name)(exact), rtol=1e-5, atol=1e-9)
    assert result.dtype == expected.dtype == "float32"


def test_a_cast_that_the_user_wrote_is_obeyed():
    with keras_mp.policy_scope("mixed_float16"):
        model = model_of(lambda x: ops.cast(ops.cast(x, "bfloat16"), "float32"))
    result = model(np.full((1, 64), 257.0, "float32"))
    assert float(result[0, 0]) == 256.0


def test_an_operation_that_returns_what_it_gets_is_left_alone():
    x = np.array([[0.5]], "float32")
    np.testing.assert_array_equal(predicted(ops.convert_to_tensor, x), x)
