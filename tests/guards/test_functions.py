"""Guards on what a layer is given: activations, activity regularizers, add_loss."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mp
from keras_mp import flow, policy_scope

X = np.linspace(-3, 3, 24, dtype="float32").reshape(2, 3, 4)


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


GIVEN = {
    "dense": lambda f: layers.Dense(4, activation=f),
    "einsum": lambda f: layers.EinsumDense("abc,cd->abd", (None, 4), activation=f),
    "convolution": lambda f: layers.Conv1D(4, 2, activation=f),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("function", ["softmax", "exponential"])
@pytest.mark.parametrize("name", GIVEN)
def test_steep_activations_are_computed_in_float32(name, function, low):
    with policy_scope(f"mixed_{low}"):
        layer, linear = GIVEN[name](function), GIVEN[name](None)
    linear.build(X.shape)
    layer.build(X.shape)
    linear.set_weights(layer.get_weights())
    with flow.read_by(flow.GRAPH):
        result = layer(X)
    assert dtype_of(linear(X)) == dtype_of(layer(X)) == low  # for any other reader
    assert dtype_of(result) == "float32"
    exact = getattr(keras.activations, function)(ops.cast(linear(X), "float32"))
    np.testing.assert_array_equal(result, exact)


def test_a_cell_gets_its_state_back_in_the_dtype_it_has():
    with policy_scope("mixed_float16"):
        layer = layers.LSTM(3, activation="softplus", recurrent_activation="softmax")
        wrapped = layers.Bidirectional(layers.GRU(3, activation="softplus"))
    assert dtype_of(layer(X)) == dtype_of(wrapped(X)) == "float16"


def test_a_guarded_model_is_saved_as_keras_saves_it(tmp_path):
    with policy_scope("mixed_float16"):
        dense = layers.Dense(
            3, activation="softmax", activity_regularizer=keras.regularizers.L2(0.1)
        )
        model = keras.Sequential([keras.Input((4,)), dense])
    assert dense.get_config()["activation"] == "softmax"
    assert "keras_mp" not in str(model.get_config())
    keras_mp.compile(model, "sgd", "mse")
    model.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert plain.layers[0].activation is keras.activations.softmax
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert loaded.predict(X[0], verbose=0).dtype == "float32"
    np.testing.assert_array_equal(loaded(X[0]), model(X[0]))


def test_an_activity_regularizer_adds_up_in_float32():
    regularizer = keras.regularizers.L2(0.5)
    with policy_scope("mixed_float16"):
        layer = layers.Dense(64, use_bias=False, activity_regularizer=regularizer)
        layer.build((1, 1))
    layer.kernel.assign(np.full((1, 64), 300.0))  # squares of which are 5,760,000
    layer(np.ones((1, 1), "float32"))
    (loss,) = layer.losses
    assert dtype_of(loss) == "float32" and float(loss) == 0.5 * 5_760_000
    assert isinstance(layer.activity_regularizer, keras.regularizers.L2)
    assert float(layer.activity_regularizer.l2) == 0.5
    config = layer.get_config()
    assert layers.Dense.from_config(config).get_config() == config


def test_losses_of_a_users_layer_join_the_loss_in_float32():
    class Own(layers.Layer):
        def call(self, x):
            self.add_loss(ops.sum(ops.ones_like(x)))
            return x

    with policy_scope("mixed_float16"):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(4), Own()])
    keras_mp.compile(model, "sgd", "mse")
    x = np.ones((2, 4), "float32")
    assert np.isfinite(model.evaluate(x, x, verbose=0))
    model(x)
    assert [dtype_of(loss) for loss in model.losses] == ["float32"]
