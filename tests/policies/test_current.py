"""The policy of new layers: set for all, or inside a block."""

import keras
import pytest
from keras import layers

from keras_mp import Policy, hardware, policies, policy_scope, set_policy

FLOAT32 = keras.DTypePolicy("float32")


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


def test_keras_get_passes_policies_through():
    policy = Policy("mixed_float16", float32=["head"])
    assert keras.dtype_policies.get(policy) is policy
    assert policies.get(policy) is policy
    assert policies.get(FLOAT32) is FLOAT32
    assert policies.get("mixed_float16") == Policy("mixed_float16")
