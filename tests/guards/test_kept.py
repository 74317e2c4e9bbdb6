"""Layers kept in float32 compute in it, and hand on what their reader takes."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import flow, guards, policy_scope, private
from keras_mp.policies import hook

RAW = np.array([[65535.0, 4097.0]], "float32")  # float16 has neither


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def rescaling():
    with policy_scope("mixed_float16"):
        return layers.Rescaling(1 / 256)


def test_raw_data_is_handed_on_as_it_came():
    layer = rescaling()
    assert dtype_of(layer(RAW)) == "float32"
    np.testing.assert_array_equal(layer(RAW), RAW / 256)
    low = keras.ops.cast(RAW / 256, "float16")
    assert dtype_of(layer(low)) == "float16"
    with flow.read_by(flow.CODE):
        assert dtype_of(layer(RAW)) == "float16"


def test_what_was_rounded_for_code_is_read_as_it_was():
    layer = rescaling()
    low = flow.rounded(keras.ops.convert_to_tensor(RAW), "float16")
    assert np.isinf(low).any()
    np.testing.assert_array_equal(flow.unrounded(layer(low)), RAW / 256)


def test_back_in_float32_a_layer_does_what_it_always_did():
    model = keras.Sequential([keras.Input((2,)), layers.Rescaling(1 / 256)])
    before = dtype_of(model.layers[0](RAW.astype("float64")))
    keras_mp.convert(model, "mixed_float16")
    keras_mp.convert(model, "float32")
    layer = model.layers[0]
    assert layer.autocast and dtype_of(layer(RAW.astype("float64"))) == before
    assert guards.dtype_around(layer) is None


def test_followers_hand_code_the_dtype_that_keras_would():
    with policy_scope("mixed_bfloat16"):
        flat = layers.Flatten()
    assert dtype_of(flat(RAW)) == "float32"
    with flow.read_by(flow.CODE):
        assert dtype_of(flat(RAW)) == "bfloat16"


def test_a_keras_without_the_hook_is_said_once_and_rules_hold(monkeypatch):
    monkeypatch.setattr(private.layers, "layer_hook", lambda *handlers: False)
    hook.install.cache_clear()
    try:
        with pytest.warns(UserWarning, match="does not tell when a layer"):
            policy = keras_mp.Policy("mixed_float16", float32=["head"])
        keras_mp.Policy("mixed_bfloat16")  # and warns no more
        model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="head")])
        keras_mp.convert(model, policy)
        assert model.layers[0].compute_dtype == "float32"
    finally:
        hook.install.cache_clear()
