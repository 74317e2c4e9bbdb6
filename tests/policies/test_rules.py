"""Which rules a policy takes, what they match, and how they are saved."""

import keras
import pytest
from keras import layers
from support.policies import Scale, in_float32

from keras_mp import Policy, policy_scope


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


def test_one_rule_needs_no_list():
    assert Policy("float32", float32="head").rules == ("head",)
    assert Policy("float32", float32=layers.Softmax).rules == (layers.Softmax,)


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


def test_dict_of_rules_is_refused():
    with pytest.raises(TypeError, match="each rule"):
        Policy("mixed_float16", float32={"head": True})
