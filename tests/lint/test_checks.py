"""`keras_mp.lint` as a whole: rules that match nothing, bad input, no change."""

import keras
import numpy as np
import pytest
from keras import layers
from support.lint import LOW, dense, found, lines, model_of

import keras_mp


def test_rules_that_match_nothing():
    policy = keras_mp.Policy("mixed_float16", float32=["haed"], follow=["nothing"])
    with_rules = found(model_of(dense(dtype=policy)), "rule")
    assert lines(with_rules) == [("warning", "net")] * 2
    assert "'haed'" in with_rules[0].reason and "'head'" in with_rules[0].fix
    policy = keras_mp.Policy("mixed_float16", float32=["last"], allow=["head"])
    last = layers.Dense(8, dtype=policy, name="last")
    assert not found(model_of(dense(dtype=policy), last), "rule")


def test_nothing_is_changed():
    policy = keras_mp.Policy("mixed_float16", float32=["nothing"])
    inputs = keras.Input((4, 8))
    x = layers.MultiHeadAttention(2, 5, **LOW)(inputs, inputs)
    x = layers.Softmax(**LOW)(x)
    x = layers.Dense(8, "elu", activity_regularizer="l2", dtype=policy)(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    model(np.ones((1, 4, 8)))

    def state():
        every = model._flatten_layers()
        return [
            {name: id(value) for name, value in vars(layer).items()}
            | {"nodes": len(layer._outbound_nodes), "losses": layer.losses}
            for layer in every
        ]

    before = state()
    assert keras_mp.lint(model, 100)
    assert state() == before


@pytest.mark.parametrize(
    "model, batch_size, error, message",
    [
        (layers.Dense(8), None, TypeError, "needs a Keras model.*Sequential"),
        (keras.Sequential([layers.Dense(8)]), None, ValueError, "not built.*Input"),
        (model_of(dense()), "8", TypeError, "needs an integer"),
        (model_of(dense()), True, TypeError, "needs an integer"),
        (model_of(dense()), 0, ValueError, "at least one"),
    ],
)
def test_bad_input(model, batch_size, error, message):
    with pytest.raises(error, match=message):
        keras_mp.lint(model, batch_size)
