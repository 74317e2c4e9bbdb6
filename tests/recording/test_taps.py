"""What is kept of each call: every layer, every call, and nothing is disturbed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_mp.recording.taps import Taps


def calls_of(model, x):
    taps = Taps(model)
    with taps.open():
        outputs = model(x)
    return taps.calls, outputs


def nested():
    inputs = keras.Input((3, 4), name="x")
    block = keras.Sequential([layers.Dense(4, name="a")], name="block")
    shared = layers.Dense(4, name="shared")
    hidden = shared(block(shared(inputs)))
    outputs = layers.LSTM(2, name="lstm")(hidden * 2.0)
    return keras.Model(inputs, outputs, name="net")


def test_every_call_of_layers_and_operations_in_order():
    calls, _ = calls_of(nested(), np.ones((2, 3, 4), "float32"))
    assert [call.path for call in calls] == [
        "net",
        "net/shared",
        "net/block",
        "net/block/a",
        "net/shared",
        "net/multiply",
        "net/lstm",
        *["net/lstm/lstm_cell"] * 4,  # one for its shape, and three steps
    ]
    around = [None if c.outer is None else calls[c.outer].path for c in calls]
    assert around[3] == "net/block" and around[4] == "net" and around[-1] == "net/lstm"


def test_outputs_are_those_without_taps():
    model, x = nested(), np.random.default_rng(0).normal(size=(2, 3, 4))
    calls, outputs = calls_of(model, x)
    np.testing.assert_array_equal(outputs, model(x))
    np.testing.assert_array_equal(calls[0].outputs[0], outputs)
    assert "call" not in vars(model) and "call" not in vars(model.layers[1])


def test_masks_pass():
    model = keras.Sequential(
        [layers.Embedding(5, 3, mask_zero=True), layers.LSTM(2), layers.Dense(1)]
    )
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    calls, outputs = calls_of(model, ids)
    np.testing.assert_array_equal(outputs, model(ids))


def test_each_tensor_has_a_gradient_of_its_own():
    inputs = keras.Input((2,))
    hidden = layers.Dense(2, name="hidden")(inputs)
    sides = [layers.Rescaling(factor, name=f"by_{factor}")(hidden) for factor in (2, 5)]
    model = keras.Model(inputs, layers.Add()(sides), name="net")
    taps = Taps(model)
    with tf.GradientTape() as tape, taps.open():
        loss = ops.sum(model(np.ones((1, 2))))
    by_path = {call.path: call for call in taps.calls}
    tensors = [by_path[f"net/by_{n}"].inputs[0] for n in (2, 5)]
    tensors += by_path["net/hidden"].outputs
    gradients = [g.numpy()[0, 0] for g in tape.gradient(loss, tensors)]
    assert gradients == [2.0, 5.0, 7.0]


def test_in_a_graph_what_a_loop_holds_is_left_out():
    model = nested()
    taps = Taps(model)

    @tf.function
    def traced(x):
        with taps.open():
            return model(x)

    traced(tf.ones((2, 3, 4)))
    paths = [call.path for call in taps.calls]
    assert paths.count("net/lstm") == 1
    assert paths.count("net/lstm/lstm_cell") == 1  # for its shape, before the loop


def test_a_call_that_fails_is_forgotten():
    class Fails(layers.Layer):
        def call(self, x):
            raise RuntimeError("no")

    model = keras.Sequential([layers.Dense(2), Fails()])
    taps = Taps(model)
    with taps.open(), pytest.raises(RuntimeError):
        model(np.ones((1, 2)))
    assert taps.calls == []
