"""Rules keep layers in float32 in every kind of model, trained and loaded."""

import keras
import numpy as np
import pytest
from keras import layers
from support.policies import (
    Twice,
    X,
    custom_layer,
    functional,
    in_float32,
    sequential,
    stack,
)

import keras_mp
from keras_mp import Policy, policy_scope, private


@keras.saving.register_keras_serializable("test_deciding")
class Net(keras.Model):
    """A subclassed model as Keras asks for it: its dtype is a constructor argument."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(4, name="body", dtype=self.dtype_policy)
        self.head = layers.Dense(2, name="head", dtype=self.dtype_policy)
        self.top = layers.Activation("gelu", name="top", dtype=self.dtype_policy)

    def call(self, x):
        return self.top(self.head(self.body(x)))


def sequential_without_input():
    return keras.Sequential(stack(), name="model")


def nested():
    inputs = keras.Input((3, 4))
    hidden = keras.Input((3, 4))
    encoder = keras.Model(hidden, layers.Dense(4, name="head")(hidden), name="encoder")
    outputs = layers.Dense(2, name="head")(encoder(inputs))
    outputs = layers.Activation("gelu", name="top")(outputs)
    return keras.Model(inputs, outputs, name="model")


def subclassed():
    return Net(name="model")


def attention():
    inputs = keras.Input((3, 4))
    outputs = layers.MultiHeadAttention(2, 3, name="attend")(inputs, inputs)
    outputs = layers.Dense(2, name="head")(outputs)
    return keras.Model(inputs, outputs, name="model")


def recurrent():
    return keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.Bidirectional(
                layers.LSTM(2, return_sequences=True, name="lstm"), name="both"
            ),
            layers.GRU(3, return_sequences=True, name="gru"),
            layers.TimeDistributed(layers.Dense(2, name="head"), name="each"),
        ],
        name="model",
    )


# Model, rules, and which of its layers they are to keep in float32.
CASES = {
    "sequential": (sequential, ["head", layers.Activation], {"head", "top"}),
    "sequential_pattern": (sequential, ["(he|to).*"], {"head", "top"}),
    "sequential_path": (sequential, ["model/head"], {"head"}),
    "sequential_path_of_weightless": (sequential, ["model/top"], {"top"}),
    "sequential_without_input": (
        sequential_without_input,
        ["head", layers.Activation],
        {"head", "top"},
    ),
    "sequential_without_input_path": (
        sequential_without_input,
        ["model/head"],
        {"head"},
    ),
    "functional": (functional, ["head", layers.Activation], {"head", "top"}),
    "functional_path": (functional, ["model/top"], {"top"}),
    "nested": (nested, ["encoder/head", "top"], {"encoder/head", "top"}),
    "nested_container": (nested, ["encoder"], {"encoder/head"}),
    "subclassed": (subclassed, ["head", layers.Activation], {"head", "top"}),
    "custom_layer": (custom_layer, ["block/second"], {"block/second"}),
    "custom_layer_container": (
        custom_layer,
        ["block"],
        {"block", "block/first", "block/second", "block/squash"},
    ),
    "custom_layer_class": (
        custom_layer,
        [Twice],
        {"block", "block/first", "block/second", "block/squash"},
    ),
    "attention_softmax": (attention, [layers.Softmax], {"attend/softmax"}),
    "attention_part": (
        attention,
        ["attend/query", "head"],
        {"attend/query", "attend/softmax", "head"},
    ),
    "attention_container": (
        attention,
        ["attend"],
        {
            "attend",
            "attend/query",
            "attend/key",
            "attend/value",
            "attend/softmax",
            "attend/attention_output",
        },
    ),
    "recurrent_layer": (recurrent, ["gru"], {"gru", "gru/gru_cell"}),
    "recurrent_class": (recurrent, [layers.GRU], {"gru", "gru/gru_cell"}),
    "recurrent_cell": (recurrent, [layers.GRUCell], {"gru/gru_cell"}),
    "recurrent_one_way": (
        recurrent,
        [".*/forward_lstm"],
        {"both/forward_lstm", "both/forward_lstm/lstm_cell"},
    ),
    # A wrapper that computes by its layer, past its policy, is where that is.
    "recurrent_wrapped": (recurrent, ["head"], {"each", "each/head"}),
    "recurrent_wrapper": (recurrent, ["each"], {"each", "each/head"}),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.long
@pytest.mark.every(2)
def test_rules_hold_in_a_model_and_after_loading_it(case, tmp_path):
    build, rules, expected = case
    policy = Policy("mixed_float16", float32=rules)
    with policy_scope(policy):
        model = build()
        model(X)
    keras_mp.compile(model, "sgd", loss="binary_crossentropy")
    assert in_float32(model) == expected
    predictions = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    with policy_scope("mixed_bfloat16"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        # The same operations on the same numbers: equal to the last bit.
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), predictions)
        keras_mp.compile(loaded, "sgd", loss="binary_crossentropy")
    assert in_float32(loaded) == expected
    held = {
        layer.dtype_policy
        for layer, _ in private.layers.with_paths(loaded)
        if layer.compute_dtype == "float16"
        and not isinstance(layer, keras.layers.InputLayer | keras.Model)
    }
    assert held == {policy}


def test_path_rules_hold_in_a_subclassed_model_loaded_with_ours(tmp_path):
    """Its layers are made anew by its own code, and built without its name."""
    with policy_scope(Policy("mixed_float16", float32=["model/head"])):
        model = subclassed()
        model(X)
    assert in_float32(model) == {"head"}
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert in_float32(loaded) == {"head"}
    np.testing.assert_array_equal(loaded(X), model(X))


@pytest.mark.parametrize("name", ["sequential_without_input", "nested", "subclassed"])
def test_rules_hold_after_two_steps_of_training(name, tmp_path):
    build, rules, expected = CASES[name]
    with policy_scope(Policy("mixed_float16", float32=rules)):
        model = build()
        model(X)
    before = [w.numpy() for w in model.trainable_variables]
    rule = keras_mp.scaling.StaticLossScale(64.0)  # no gradient comes near 1000
    keras_mp.compile(model, "sgd", loss="binary_crossentropy", scaling=rule)
    y = np.ones((4, 3, 2), "float32")
    losses = model.fit(X, y, batch_size=2, epochs=1, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert model.optimizer.stats()["applied"] == 2
    assert in_float32(model) == expected
    changed = [
        np.any(w.numpy() != b)
        for w, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert all(changed)
    assert all(w.dtype == "float32" for w in model.trainable_variables)
    predictions = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), predictions)
    loaded.fit(X, y, batch_size=2, verbose=0)
    assert loaded.optimizer.stats()["applied"] == 4


@pytest.mark.parametrize("rule", [keras.Sequential, keras.Model])
def test_class_rule_of_a_model_class(rule, tmp_path):
    with policy_scope(Policy("mixed_float16", float32=[rule])):
        dense = layers.Dense(2, name="alone")
        model = sequential()
    assert dense.compute_dtype == "float16"
    keras_mp.compile(model, "sgd", loss="binary_crossentropy")
    assert in_float32(model) == {"body", "head", "top"}
