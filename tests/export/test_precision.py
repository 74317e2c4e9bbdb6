"""The model stays as it was; what of its graph was in low precision."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.exported import (
    CLOSE,
    SUFFIXES,
    check_export,
    policies_of,
    run,
    token_ids,
    transformer,
)

import keras_mp

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_training_goes_on_bit_for_bit(tmp_path, kind):
    def weights(exports):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = transformer(kind)
        before = policies_of(model), model.train_function, model.optimizer
        if exports:
            keras_mp.export(model, tmp_path / "model")
            keras_mp.export(model, tmp_path / "model.tflite")
        assert (policies_of(model), model.train_function, model.optimizer) == before
        model.fit(token_ids(), np.ones((8, 3)), batch_size=4, verbose=0)
        return [*model.get_weights(), *model.optimizer.variables]

    for each, other in zip(weights(False), weights(True), strict=True):
        np.testing.assert_array_equal(each, other)


def test_a_failed_trace_restores_the_model(tmp_path):
    class Stubborn(keras.layers.Layer):
        def call(self, x):
            return keras.ops.cast(keras.ops.cast(x, "float16") * 2, self.compute_dtype)

    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(2), Stubborn(name="stubborn")]
        )
    before = policies_of(model)
    with pytest.raises(ValueError, match="operations that are in float16.*stubborn"):
        keras_mp.export(model, tmp_path / "model")
    assert policies_of(model) == before and os.listdir(tmp_path) == []
    assert model(np.ones((1, 4))).dtype == "float16"


def test_state_and_losses_are_put_back(tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input(batch_shape=(2, 3, 4)),
                keras.layers.Dense(4, activity_regularizer="l2"),
                keras.layers.LSTM(2, stateful=True),
            ]
        )
    x = np.ones((2, 3, 4), "float32")
    model(x)
    losses = [float(loss) for loss in model.losses]
    states = [np.array(each) for each in model.non_trainable_variables]
    keras_mp.export(model, tmp_path / "model")
    assert [float(loss) for loss in model.losses] == losses
    for each, other in zip(model.non_trainable_variables, states, strict=True):
        np.testing.assert_array_equal(each, other)


def test_an_input_that_was_made_in_float16(tmp_path):
    """The model rounds to it, its export does not; 2049 has no float16."""
    inputs = keras.Input((1,), dtype="float16")
    model = keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs))
    x = np.full((1, 1), 2049, "float32")
    exported = keras_mp.export(model, tmp_path / "model", sample=x)
    assert run(exported, [x], model)[0] == 2049
    assert model(x) == 2048 and model.input.dtype == "float16"


@pytest.mark.long
def test_replicas(tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(2),
                keras.layers.BatchNormalization(),
            ]
        )
        keras_mp.compile(model, "adam", loss="mse", policy="mixed_float16")
    x = np.random.default_rng(0).random((8, 4), dtype="float32")
    model.fit(x, x[:, :2], verbose=0)
    check_export(model, [x], tmp_path, "tflite")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_a_graph_with_rounded_constants_and_casts(policy, format, tmp_path):
    with keras_mp.policy_scope(policy):
        ids = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(10, 8)(ids)
        # As in KerasHub's Gemma: a constant in the dtype of the time.
        x = x * keras.ops.cast(keras.ops.sqrt(10.0), x.dtype)
        mask = keras.ops.cast(keras.ops.not_equal(ids, 0), x.dtype)
        x = x * mask[..., None] + keras.ops.one_hot(ids, 8, dtype=x.dtype)
        model = keras.Model(ids, keras.layers.Dense(3)(x))
    before = model(np.arange(8).reshape(2, 4))
    exported = keras_mp.export(model, tmp_path / SUFFIXES[format])
    assert exported.difference <= CLOSE
    after = model(np.arange(8).reshape(2, 4))
    assert after.dtype == before.dtype  # the graph has its casts again
    np.testing.assert_array_equal(after, before)


def test_a_product_in_low_precision_is_refused_beside_constants(tmp_path):
    class Stubborn(keras.layers.Layer):
        def call(self, x):
            factor = keras.ops.cast(3.3, "float16")
            return keras.ops.cast(keras.ops.cast(x, "float16") * factor, "float32")

    model = keras.Sequential([keras.Input((4,)), Stubborn()])
    with pytest.raises(ValueError, match="operations that are in float16"):
        keras_mp.export(model, tmp_path / "model")


def test_a_layer_kept_by_a_rule_hands_float32_to_code_of_the_users_own(tmp_path):
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(4, name="first")
            self.second = keras.layers.Dense(4, name="second")

        def call(self, x):
            x = self.first(x)
            return x + self.second(x)

    with keras_mp.policy_scope(keras_mp.Policy("mixed_float16", float32=["second"])):
        model = Sum()
    model(np.ones((2, 4)))
    assert keras_mp.export(model, tmp_path / "model").difference == 0.0
    assert model.second(np.ones((2, 4))).dtype == "float32"
