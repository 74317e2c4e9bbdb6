"""Lint finds layers that 16 bits are too few for, unless they are guarded."""

import keras
import pytest
from keras import layers
from support.lint import X, dense, found, lines, model_of

import keras_mp
from keras_mp.guards import GUARDS

SENSITIVE = {
    "activation": lambda: dense(8, "softmax"),
    "regularizer": lambda: dense(activity_regularizer="l2"),
    "denied": lambda: layers.Softmax(dtype="mixed_float16", name="head"),
    "inside": lambda: layers.ELU(dtype="mixed_float16", name="head"),
}


@pytest.mark.parametrize("make", SENSITIVE.values(), ids=SENSITIVE)
def test_sensitive_layers(make):
    model = model_of(make(), layers.Dense(8))
    assert lines(found(model, "sensitive")) == [("warning", "net/head")]
    keras_mp.compile(model, "adam", "mse")
    assert not keras_mp.lint(model)


def test_a_layer_in_an_island_is_not_sensitive():
    island = keras_mp.layers.Float32(dense(8, "softmax"), dtype="mixed_float16")
    assert not found(model_of(island), "sensitive")


def test_layers_that_are_built_after_compile():
    model = keras.Sequential([dense(8, "softmax"), layers.ELU(dtype="mixed_float16")])
    keras_mp.compile(model, "adam", "mse")
    model.fit(X, X, verbose=0)
    assert not keras_mp.lint(model)


def test_what_a_rule_allows_is_not_sensitive():
    policy = keras_mp.Policy("mixed_float16", allow=["head"])
    assert not found(model_of(dense(8, "softmax", policy)), "sensitive")


def test_attention_is_one_finding():
    inputs = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 8, dtype="mixed_float16", name="mha")
    model = keras.Model(inputs, attention(inputs, inputs), name="net")
    (finding,) = found(model, "sensitive")
    assert finding.layer == "net/mha" and "softmax" in finding.reason
    keras_mp.compile(model, "adam", "mse")
    assert not keras_mp.lint(model)


@pytest.mark.parametrize("dtype, expected", [("float32", ["net"]), ("int32", [])])
def test_containers_that_round_ids(dtype, expected):
    with_policy = {"dtype": "mixed_float16"}
    embedding = layers.Embedding(10, 8, **with_policy)
    inputs = keras.Input((8,), dtype=dtype)
    model = keras.Model(inputs, embedding(inputs), name="net", **with_policy)
    model.dtype_policy = "mixed_float16"
    assert [f.layer for f in found(model, "sensitive")] == expected
    if expected:
        keras_mp.convert(model, "mixed_float16")
        assert not found(model, "sensitive")


def test_a_shared_layer_is_named_once():
    shared = dense(8, "softmax")
    inputs = keras.Input((8,))
    inner = keras.Sequential([keras.Input((8,)), shared], name="inner")
    model = keras.Model(inputs, inner(shared(inputs)), name="net")
    assert len(found(model, "sensitive")) == 1


def test_asking_for_missing_guards_puts_none_on():
    for make in (*SENSITIVE.values(), lambda: layers.MultiHeadAttention(2, 8)):
        layer = make()
        before = dict(vars(layer))
        for guard in GUARDS.values():
            if guard.is_needed(layer):
                guard.is_on(layer)
        assert vars(layer) == before
