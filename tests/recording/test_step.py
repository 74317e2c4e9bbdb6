"""A recorded batch changes nothing in its model, on no replica."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.processes import mirrored, run_alone

import keras_mp
from keras_mp import private
from keras_mp.recording import Batch, Recorder


class Noise(keras.layers.Layer):
    """Draws from Keras's own generator, which belongs to no model."""

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs))


def trained():
    """Return a model that was trained on two batches, and another batch."""
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(8)(inputs)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(0.5)(hidden)
    outputs = [keras.layers.Dense(1, name=name)(hidden) for name in "ab"]
    model = keras.Model(inputs, outputs)
    keras_mp.compile(model, "sgd", ["mse", "mae"], policy="mixed_float16")
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    model.fit(x, [x[:, :1], x[:, 1:2]], batch_size=16, verbose=0)
    return model, Batch(x[:4], [x[:4, :1], x[:4, 1:2]])


def state(model):
    """Return all variables of ``model`` on each replica, as lists."""
    variables = [*model.variables, *model.metrics_variables]
    strategy = model.distribute_strategy or tf.distribute.get_strategy()
    local = strategy.experimental_local_results
    return [copy.numpy().tolist() for each in variables for copy in local(each.value)]


def case():
    model, batch = trained()
    before = state(model)
    recorder = Recorder(model, batch)
    recorder.record(8.0)
    recorder.record_in_float32()
    return {
        "changed": state(model) != before,
        "replicas differ": before[::2] != before[1::2],
    }


def test_one_device():
    assert not case()["changed"]


def test_the_generator_that_belongs_to_no_model():
    keras.random.normal((1,))  # makes it
    model = keras.Sequential([keras.Input((8,)), Noise()])
    model.compile(loss="mse")
    (seed,) = private.draws.global_seed()
    before = seed.numpy().tolist()
    Recorder(model, Batch(np.ones((4, 8), "f4"), np.ones((4, 8), "f4"))).record(8.0)
    assert seed.numpy().tolist() == before


@pytest.mark.long
def test_each_replica_keeps_what_it_has():
    assert run_alone(__file__) == {"changed": False, "replicas differ": True}


if __name__ == "__main__":
    with mirrored(2).scope():
        print(json.dumps(case()))
