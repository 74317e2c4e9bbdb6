"""A layer obeys the policy that arrives on it, however it arrives."""

import keras
import pytest
from keras import layers
from support.policies import Loose, X, custom_layer, in_float32

import keras_mp
from keras_mp import Policy, policy_scope


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


def test_container_rule_covers_a_cell_that_keras_gives_the_global_policy():
    with policy_scope(Policy("mixed_float16", float32=[layers.LSTM])):
        layer = layers.LSTM(2)
        other = layers.GRU(2)
    assert layer(X).dtype.name == "float32"
    assert layer.compute_dtype == layer.cell.compute_dtype == "float32"
    assert other.compute_dtype == other.cell.compute_dtype == "float16"
