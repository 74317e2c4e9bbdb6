"""A model's outputs in float32, and the products before them in low precision."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import policy_scope

X = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)
IDS = np.arange(8) % 3


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return {"logits": self.dense(x), "ids": keras.ops.argmax(x, axis=-1)}


def sequential():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def functional():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3)(inputs))


def nested():
    inputs = keras.Input((4,))
    return keras.Model(inputs, sequential()(inputs))


@pytest.mark.parametrize("make", [sequential, functional, nested])
def test_predictions_are_in_float32(make, tmp_path):
    with policy_scope("mixed_float16"):
        model = make()
    assert keras.backend.standardize_dtype(model(X).dtype) == "float16"
    keras_mp.compile(
        model, "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    assert model.predict(X, verbose=0).dtype == "float32"
    inner = model.layers[-1]
    assert inner.compute_dtype == "float16"
    model.fit(X, IDS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert loaded.predict(X, verbose=0).dtype == "float32"


def test_structures_keep_their_integers():
    with policy_scope("mixed_bfloat16"):
        model = Own()
    keras_mp.compile(model, "sgd", loss={"logits": "mse", "ids": None})
    dtypes = {k: v.dtype.name for k, v in model.predict(X, verbose=0).items()}
    assert dtypes["logits"] == "float32" and "int" in dtypes["ids"]


def test_a_metric_that_fails_on_float16_works():
    """`TopKCategoricalAccuracy` raises for a float16 ``y_pred`` in Keras."""
    with policy_scope("mixed_float16"):
        model = sequential()
    keras_mp.compile(
        model,
        "sgd",
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.TopKCategoricalAccuracy(k=2)],
    )
    y = np.eye(3, dtype="float32")[IDS]
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    assert 0 <= logs["top_k_categorical_accuracy"] <= 1


def test_a_float32_model_is_left_alone():
    model = sequential()
    keras_mp.compile(model, "sgd", "mse")
    assert "call" not in vars(model)
