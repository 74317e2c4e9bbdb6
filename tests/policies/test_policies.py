"""`Policy` wherever Keras takes a dtype policy, and what a saved model keeps of it."""

import copy
import json
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import (
    Policy,
    hardware,
    policies,
    policy_scope,
    precision_lists,
    private,
    set_policy,
)

X = np.random.default_rng(0).normal(size=(4, 3, 4)).astype("float32")
FLOAT32 = keras.DTypePolicy("float32")


@keras.saving.register_keras_serializable("test_policies")
class Loose(layers.Layer):
    """A composite layer that passes no dtype inside, so its layers take the global."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.make(None)

    def make(self, dtype):
        self.first = layers.Dense(4, name="first", dtype=dtype)
        self.second = layers.Dense(4, name="second", dtype=dtype)
        self.squash = layers.Activation("tanh", name="squash", dtype=dtype)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.squash(self.second(self.first(x)))


@keras.saving.register_keras_serializable("test_policies")
class Twice(Loose):
    """The same, written as Keras's own composite layers are."""

    def make(self, dtype):
        super().make(self.dtype_policy)


@keras.saving.register_keras_serializable("test_policies")
class Scale(layers.Dense):
    """A registered custom layer, for class rules."""


@keras.saving.register_keras_serializable("test_policies")
class Net(keras.Model):
    """A subclassed model as Keras asks for it: its dtype is a constructor argument."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(4, name="body", dtype=self.dtype_policy)
        self.head = layers.Dense(2, name="head", dtype=self.dtype_policy)
        self.top = layers.Activation("gelu", name="top", dtype=self.dtype_policy)

    def call(self, x):
        return self.top(self.head(self.body(x)))


def stack():
    return [
        layers.Dense(4, name="body"),
        layers.Dense(2, name="head"),
        layers.Activation("gelu", name="top"),
    ]


def sequential():
    return keras.Sequential([keras.Input((3, 4)), *stack()], name="model")


def sequential_without_input():
    return keras.Sequential(stack(), name="model")


def functional():
    inputs = outputs = keras.Input((3, 4))
    for layer in stack():
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="model")


def nested():
    inputs = keras.Input((3, 4))
    hidden = keras.Input((3, 4))
    encoder = keras.Model(hidden, layers.Dense(4, name="head")(hidden), name="encoder")
    outputs = layers.Dense(2, name="head")(encoder(inputs))
    outputs = layers.Activation("gelu", name="top")(outputs)
    return keras.Model(inputs, outputs, name="model")


def subclassed():
    return Net(name="model")


def custom_layer(block=Twice):
    block = block(name="block")
    return keras.Sequential(
        [keras.Input((3, 4)), block, layers.Dense(2, name="head")], name="model"
    )


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


def in_float32(model):
    """Return the paths below ``model`` of the layers that compute in float32.

    Attention layers number their nameless softmax within the session: softmax_1, ...
    """
    return {
        re.sub(r"/softmax_\d+$", "/softmax", path.split("/", 1)[1])
        for layer, path in private.layers.with_paths(model)
        if layer.compute_dtype == "float32"
        and layer is not model
        and not isinstance(layer, keras.layers.InputLayer | keras.Model)
        # A dropout of rate 0, which attention layers hold and never call.
        and not isinstance(layer, layers.Dropout)
    }


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


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


@pytest.mark.parametrize(
    ("rule", "inside"),
    [
        ("block/second", {"second"}),
        ("squash", {"squash"}),
        ("block", {"", "first", "second", "squash"}),
        (Loose, {"", "first", "second", "squash"}),
    ],
)
def test_layer_that_passes_no_dtype_on_keeps_rules_under_the_same_policy(
    rule, inside, tmp_path
):
    expected = {f"block/{name}".rstrip("/") for name in inside}
    with policy_scope(Policy("mixed_float16", float32=[rule])):
        model = custom_layer(Loose)
        keras_mp.compile(model, "sgd", loss="binary_crossentropy")
        assert in_float32(model) == expected
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        keras_mp.compile(loaded, "sgd", loss="binary_crossentropy")
        assert in_float32(loaded) == expected


@pytest.mark.parametrize(
    ("name", "low"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")]
)
def test_policy_of_one_layer(name, low):
    policy = Policy(name, float32=["head", layers.LayerNormalization])
    body = layers.Dense(2, name="body", dtype=policy)
    head = layers.Dense(2, name="head", dtype=policy)
    norm = layers.LayerNormalization(dtype=policy)
    assert body(X).dtype.name == body.compute_dtype == low
    assert head(X).dtype.name == head.compute_dtype == "float32"
    assert norm(X).dtype.name == norm.compute_dtype == "float32"
    assert body.kernel.dtype == body.variable_dtype == "float32"
    assert layers.Dense(2, name="head").compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_weightless_layers_obey_name_and_class_rules_at_once():
    policy = Policy("mixed_float16", float32=["top", layers.ELU, "drop_.*"])
    with policy_scope(policy):
        quiet = [
            layers.ELU(),
            layers.Activation("gelu", name="top"),
            layers.Dropout(0.5, name="drop_3"),
        ]
        loud = [layers.Activation("gelu"), layers.Dropout(0.5)]
    assert [layer(X).dtype.name for layer in quiet] == ["float32"] * 3
    assert [layer(X).dtype.name for layer in loud] == ["float16"] * 2


def test_a_rule_must_match_a_name_in_full():
    policy = Policy("mixed_float16", float32=["head", "block_[0-9]"])
    names = ["head", "head_1", "ahead", "block_1", "block_12"]
    made = [layers.Dense(2, name=name, dtype=policy) for name in names]
    assert [layer.compute_dtype for layer in made] == [
        "float32",
        "float16",
        "float16",
        "float32",
        "float16",
    ]


@pytest.mark.parametrize(
    ("rule", "path", "expected"),
    [
        ("head", "model/head", True),
        ("model", "model/encoder/head", True),
        ("encoder/head", "model/encoder/head", True),
        ("model/encoder", "model/encoder/head", True),
        ("model/head", "model/encoder/head", False),
        ("model/.*/head", "model/a/b/head", True),
        ("enc", "model/encoder/head", False),
        ("coder/head", "model/encoder/head", False),
        ("a|b", "model/b", True),
        (layers.Dense, "anything", True),
        (layers.Layer, "anything", True),
        (layers.Conv1D, "anything", False),
    ],
)
def test_rule_matches(rule, path, expected):
    assert precision_lists.matches(rule, layers.Dense(2), path) is expected


def test_class_rules_cover_subclasses():
    policy = Policy("mixed_float16", float32=[layers.Dense])
    assert Scale(2, dtype=policy).compute_dtype == "float32"
    policy = Policy("mixed_float16", float32=[Scale])
    assert Scale(2, dtype=policy).compute_dtype == "float32"
    assert layers.Dense(2, dtype=policy).compute_dtype == "float16"


def test_class_rule_of_a_registered_class_survives_saving(tmp_path):
    policy = Policy("mixed_float16", float32=[Scale])
    with policy_scope(policy):
        model = keras.Sequential(
            [keras.Input((3, 4)), Scale(3, name="a"), layers.Dense(2, name="b")]
        )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert in_float32(loaded) == {"a"}
    assert loaded.get_layer("b").dtype_policy.rules == (Scale,)


def test_class_rule_needs_no_registration_until_it_is_loaded(tmp_path):
    class Unregistered(layers.Dense):
        pass

    policy = Policy("mixed_float16", float32=[Unregistered])
    with policy_scope(policy):
        model = keras.Sequential(
            [keras.Input((3, 4)), Unregistered(3, name="a"), layers.Dense(2, name="b")]
        )
    assert in_float32(model) == {"a"}
    model.save(tmp_path / "model.keras")
    objects = {"Unregistered": Unregistered}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=objects)
    assert in_float32(loaded) == {"a"}
    with pytest.raises(ValueError, match="Unregistered.*register_keras_serializable"):
        Policy.from_config(policy.get_config())


def test_class_rule_of_a_user_class_called_like_a_keras_class():
    class Dense(layers.Layer):
        pass

    policy = Policy("mixed_float16", float32=[Dense])
    assert Dense(dtype=policy).compute_dtype == "float32"
    assert layers.Dense(2, dtype=policy).compute_dtype == "float16"


@pytest.mark.parametrize("rule", [keras.Sequential, keras.Model])
def test_class_rule_of_a_model_class(rule, tmp_path):
    with policy_scope(Policy("mixed_float16", float32=[rule])):
        dense = layers.Dense(2, name="alone")
        model = sequential()
    assert dense.compute_dtype == "float16"
    keras_mp.compile(model, "sgd", loss="binary_crossentropy")
    assert in_float32(model) == {"body", "head", "top"}


def test_container_rule_covers_a_cell_that_keras_gives_the_global_policy():
    with policy_scope(Policy("mixed_float16", float32=[layers.LSTM])):
        layer = layers.LSTM(2)
        other = layers.GRU(2)
    assert layer(X).dtype.name == "float32"
    assert layer.compute_dtype == layer.cell.compute_dtype == "float32"
    assert other.compute_dtype == other.cell.compute_dtype == "float16"


@pytest.mark.parametrize("ours", [True, False], ids=["rule", "keras_rule"])
def test_islands_that_a_rule_matches_hand_back_float32(ours):
    rule = "out" if ours else layers.Softmax
    with policy_scope(Policy("mixed_float16", float32=[rule])):
        layer = keras_mp.layers.Softmax(name="out")
        model = keras.Sequential([keras.Input((3, 4)), layer])
    keras_mp.compile(model, "sgd", loss="binary_crossentropy")
    created = model(X).dtype
    keras_mp.convert(model, Policy("mixed_float16", float32=[rule]))
    assert created == model(X).dtype == "float32"


def test_setting_dtype_policy_affects_that_layer_only():
    policy = Policy("mixed_float16", float32=["head"])
    with policy_scope(policy):
        model = sequential()
    body, head, top = model.layers
    assert body.path  # built: Keras would write into the shared policy
    body.dtype_policy = "float32"
    assert body.compute_dtype == "float32"
    assert top.compute_dtype == "float16"
    assert layers.Dense(2, dtype=policy).compute_dtype == "float16"
    body.dtype_policy = "mixed_bfloat16"
    assert body(X).dtype.name == "bfloat16"
    body.dtype_policy = Policy("mixed_float16", float32=["bod."])
    assert body.compute_dtype == "float32"
    body.dtype_policy = Policy("mixed_float16", float32=["other"])
    assert body.compute_dtype == "float16"
    assert head.compute_dtype == "float32"


def test_setting_dtype_policy_of_a_built_layer_obeys_rules_on_its_path():
    model = sequential()
    body = model.get_layer("body")
    assert body.path == "model/body"
    body.dtype_policy = Policy("mixed_float16", float32=["model/body"])
    assert body.compute_dtype == "float32"


def test_setting_dtype_policy_before_the_layer_is_built():
    layer = layers.Dense(2, name="x", dtype=Policy("mixed_float16", float32=["head"]))
    other = layers.Dense(2, dtype=layer.dtype_policy)
    layer.dtype_policy = "float32"
    layer(X)
    assert layer.compute_dtype == "float32"
    assert other.compute_dtype == "float16"
    other.dtype_policy = "mixed_bfloat16"
    other(X)
    assert other.compute_dtype == "bfloat16"
    assert layer.compute_dtype == "float32"


def test_set_layer_policy_is_saved(tmp_path):
    with policy_scope(Policy("mixed_float16", float32=["head"])):
        model = sequential()
    model.get_layer("body").dtype_policy = "mixed_bfloat16"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    dtypes = [layer.compute_dtype for layer in loaded.layers]
    assert dtypes == ["bfloat16", "float32", "float16"]


def test_set_policy_returns_what_it_sets():
    policy = Policy("mixed_float16", float32=["head"])
    assert set_policy(policy) is policy
    assert keras.config.dtype_policy() is policy
    assert set_policy("mixed_bfloat16").compute_dtype == "bfloat16"
    assert layers.Dense(2).compute_dtype == "bfloat16"
    assert set_policy(FLOAT32) is FLOAT32
    assert layers.Dense(2).compute_dtype == "float32"


def test_policy_scope_restores_what_was_there():
    outer = set_policy(Policy("mixed_bfloat16", float32=["a"]))
    with policy_scope(Policy("mixed_float16", float32=["b"])) as policy:
        assert keras.config.dtype_policy() is policy
        assert policy.rules == ("b",)
        with policy_scope("float32"):
            assert layers.Dense(2).compute_dtype == "float32"
        assert keras.config.dtype_policy() is policy
    assert keras.config.dtype_policy() is outer


def test_policy_scope_restores_after_an_exception():
    with pytest.raises(RuntimeError, match="inside"):
        with policy_scope("mixed_float16"):
            raise RuntimeError("inside")
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(ValueError, match="mixed_float17"):
        with policy_scope("mixed_float17"):
            pytest.fail("the block must not run")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_auto_takes_what_hardware_recommends(name, monkeypatch):
    recommendation = hardware.Recommendation(name, "Because.")
    monkeypatch.setattr(hardware, "recommend", lambda: recommendation)
    for policy in (
        Policy(),
        Policy("auto", float32=["head"]),
        policies.get("auto"),
        set_policy("auto"),
    ):
        assert policy.name == name
        assert policy.reason == "Because."
    with policy_scope("auto") as policy:
        assert policy.reason == "Because."
        expected = name.removeprefix("mixed_")
        assert layers.Dense(2).compute_dtype == expected
    assert Policy("auto", float32=["head"]).rules == ("head",)


def test_auto_is_saved_as_what_it_picked(monkeypatch, tmp_path):
    recommendation = hardware.Recommendation("mixed_float16", "Because.")
    monkeypatch.setattr(hardware, "recommend", lambda: recommendation)
    with policy_scope(Policy("auto", float32=["head"])):
        model = sequential()
    model.save(tmp_path / "model.keras")
    other = hardware.Recommendation("float32", "Another machine.")
    monkeypatch.setattr(hardware, "recommend", lambda: other)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("body").compute_dtype == "float16"


def test_reason_is_none_for_a_named_policy():
    assert Policy("mixed_float16").reason is None


def test_equality_and_hash():
    policy = Policy("mixed_float16", float32=["head", layers.Softmax])
    same = Policy("mixed_float16", float32=("head", layers.Softmax))
    assert policy == same
    assert hash(policy) == hash(same)
    for other in (
        Policy("mixed_bfloat16", float32=["head", layers.Softmax]),
        Policy("mixed_float16", float32=["head"]),
        Policy("mixed_float16"),
        keras.DTypePolicy("mixed_float16"),
        "mixed_float16",
        None,
    ):
        assert policy != other
    assert keras.DTypePolicy("mixed_float16") != Policy("mixed_float16")
    assert len({policy, same, Policy("mixed_float16")}) == 2


def test_repr_shows_name_and_rules():
    shown = repr(Policy("mixed_float16", float32=["head", layers.Softmax]))
    assert "mixed_float16" in shown
    assert "head" in shown
    assert "Softmax" in shown


def test_one_rule_needs_no_list():
    assert Policy("float32", float32="head").rules == ("head",)
    assert Policy("float32", float32=layers.Softmax).rules == (layers.Softmax,)


def test_policy_takes_a_keras_policy_for_its_name():
    policy = Policy(keras.DTypePolicy("mixed_bfloat16"), float32=["head"])
    assert policy.name == "mixed_bfloat16"
    assert policy.compute_dtype == "bfloat16"
    assert policy.variable_dtype == "float32"
    assert policy.quantization_mode is None


POLICY_COPIES = {
    "pickle": lambda policy: pickle.loads(pickle.dumps(policy)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "config": lambda policy: Policy.from_config(policy.get_config()),
    "json": lambda policy: Policy.from_config(
        json.loads(json.dumps(policy.get_config()))
    ),
    "keras": lambda policy: keras.dtype_policies.deserialize(
        json.loads(json.dumps(keras.dtype_policies.serialize(policy)))
    ),
    "keras_get": lambda policy: keras.dtype_policies.get(
        keras.dtype_policies.serialize(policy)
    ),
}


@pytest.mark.parametrize("copied", POLICY_COPIES)
def test_copies_are_equal(copied):
    policy = Policy("mixed_float16", float32=["head", layers.Softmax, Scale])
    again = POLICY_COPIES[copied](policy)
    assert type(again) is Policy
    assert again == policy
    assert again.rules == ("head", layers.Softmax, Scale)
    assert layers.Dense(2, name="head", dtype=again).compute_dtype == "float32"
    assert layers.Dense(2, name="body", dtype=again).compute_dtype == "float16"


@pytest.mark.parametrize("copied", ["pickle", "deepcopy"])
def test_copies_of_a_layers_own_policy_serve_another_layer(copied):
    first = layers.Dense(2, dtype=Policy("mixed_float16", float32=["head"]))
    first(X)
    again = POLICY_COPIES[copied](first.dtype_policy)
    second = layers.Dense(2, dtype=again)
    second(X)
    second.dtype_policy = "float32"
    assert first.compute_dtype == "float16"
    assert second.compute_dtype == "float32"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copied_models_keep_their_rules(copied):
    with policy_scope(Policy("mixed_float16", float32=["head"])):
        model = sequential()
    again = copied(model)
    assert in_float32(again) == {"head"}
    again.get_layer("body").dtype_policy = "float32"
    assert in_float32(model) == {"head"}
    assert in_float32(again) == {"head", "body"}


def test_cloned_models_keep_their_rules():
    with policy_scope(Policy("mixed_float16", float32=["head", "model/top"])):
        model = functional()
    again = keras.models.clone_model(model)
    keras_mp.compile(again, "sgd", loss="binary_crossentropy")
    assert in_float32(again) == {"head", "top"}


def test_keras_get_passes_policies_through():
    policy = Policy("mixed_float16", float32=["head"])
    assert keras.dtype_policies.get(policy) is policy
    assert policies.get(policy) is policy
    assert policies.get(FLOAT32) is FLOAT32
    assert policies.get("mixed_float16") == Policy("mixed_float16")


def test_from_config_leaves_its_dict_alone():
    config = Policy("mixed_float16", float32=["head", layers.Softmax]).get_config()
    before = copy.deepcopy(config)
    Policy.from_config(config)
    assert config == before
    config["float32"].append("other")
    assert Policy.from_config(before).rules == ("head", layers.Softmax)


def test_policy_is_truthy_though_its_mapping_is_empty():
    policy = Policy("mixed_float16", float32=["head"])
    assert policy
    assert len(policy) == 0
    assert list(policy) == []
    assert "head" not in policy


@pytest.mark.parametrize("name", ["mixed_float17", "half", 3, "mixed_int8"])
def test_unknown_policies_are_refused(name):
    for use in (Policy, policies.get, set_policy):
        with pytest.raises(ValueError, match="mixed_bfloat16.*auto") as info:
            use(name)
        assert repr(name) in str(info.value)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("rule", ["(", "*head", "block_["])
def test_rules_that_are_no_regular_expression_are_refused(rule):
    with pytest.raises(ValueError, match="regular expression") as info:
        Policy("mixed_float16", float32=["head", rule])
    assert repr(rule) in str(info.value)


@pytest.mark.parametrize("rule", [3, None, int, b"head", ("a", "b")], ids=str)
def test_rules_of_a_wrong_type_are_refused(rule):
    with pytest.raises(TypeError, match="name.*regular expression.*layer class"):
        Policy("mixed_float16", float32=["head", rule])


@pytest.mark.parametrize("as_list", [True, False])
def test_layers_as_rules_are_refused(as_list):
    layer = layers.Dense(2, name="mine")
    with pytest.raises(TypeError, match="layer class.*mine.*pass its name"):
        Policy("mixed_float16", float32=[layer] if as_list else layer)


@pytest.mark.parametrize("way", ["global", "layer", "compile"])
def test_policy_without_rules_is_saved_as_keras_own(way):
    with policy_scope("mixed_bfloat16" if way == "global" else "float32"):
        dtype = Policy("mixed_bfloat16") if way == "layer" else None
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(1, dtype=dtype)]
        )
    keras_mp.compile(
        model,
        "sgd",
        "binary_crossentropy",
        policy="mixed_bfloat16" if way == "compile" else None,
    )
    assert model.layers[0].compute_dtype == "bfloat16"
    assert "keras_mp" not in model.to_json()


@pytest.mark.parametrize(
    "arguments",
    [(None,), ("int32",), ("string",), (Policy("float32"),), ("float32", [""])],
    ids=str,
)
def test_what_is_no_policy_is_refused(arguments):
    with pytest.raises(ValueError):
        Policy(*arguments)
    assert keras.config.dtype_policy().name == "float32"


def test_dict_of_rules_is_refused():
    with pytest.raises(TypeError, match="each rule"):
        Policy("mixed_float16", float32={"head": True})


def test_subclass_with_its_own_constructor():
    class Heads(Policy):
        def __init__(self):
            super().__init__("mixed_float16", ["head"])

    layer = keras.layers.Dense(1, name="body", dtype=Heads())
    assert type(layer.dtype_policy) is Heads
    assert keras.layers.Dense(1, name="head", dtype=Heads()).compute_dtype == "float32"
