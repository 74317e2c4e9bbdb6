"""`Policy` itself: its names, its copies, and what a saved model keeps of it."""

import copy
import json
import pickle

import keras
import pytest
from keras import layers
from support.policies import Scale, X, functional, in_float32, sequential

import keras_mp
from keras_mp import Policy, hardware, policies, policy_scope, set_policy


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
        guard=False,  # a guarded model is saved with the guard
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


def test_subclass_with_its_own_constructor():
    class Heads(Policy):
        def __init__(self):
            super().__init__("mixed_float16", ["head"])

    layer = keras.layers.Dense(1, name="body", dtype=Heads())
    assert type(layer.dtype_policy) is Heads
    assert keras.layers.Dense(1, name="head", dtype=Heads()).compute_dtype == "float32"
