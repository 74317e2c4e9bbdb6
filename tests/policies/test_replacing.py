"""A layer gets another policy, and no other layer does."""

import keras
import pytest
from keras import layers
from support.policies import X, sequential

import keras_mp
from keras_mp import Policy, policy_scope


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
