"""Lint finds what a model returns in 16 bits, by the dtypes of today."""

import keras
from keras import layers
from support.lint import dense, found, lines, model_of, own

import keras_mp


def test_low_precision_heads_by_name():
    inputs = keras.Input((8,))
    outputs = [
        layers.Dense(8, dtype=dtype, name=name)(inputs)
        for name, dtype in (("a", "mixed_bfloat16"), ("b", "float32"), ("c", "float16"))
    ]
    model = keras.Model(inputs, outputs, name="net")
    heads = found(model, "head")
    assert lines(heads) == [("warning", "net/a"), ("warning", "net/c")]
    assert "bfloat16" in heads[0].reason


def test_heads_are_judged_by_the_dtypes_of_today():
    model = model_of(dense(dtype="float32"))
    model.layers[-1].dtype_policy = "mixed_float16"
    assert lines(found(model, "head")) == [("warning", "net/head")]


def test_a_model_of_ones_own():
    model = own()
    assert lines(found(model, "head")) == [("warning", "own")]
    assert not [f for f in keras_mp.lint(model) if "traced" in f.reason]


def test_a_model_that_cannot_be_traced_is_a_note():
    model = own()
    model.call = None
    (finding,) = [f for f in found(model, "unknown") if "traced" in f.reason]
    assert finding.severity == "note" and finding.layer == "own"
