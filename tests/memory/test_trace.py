"""The traced step is the real one, and tracing it leaves no traces."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import memory
from keras_mp.memory import graphs, trace

layers = keras.layers


def small(**compile_arguments):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    if compile_arguments:
        keras_mp.compile(model, **compile_arguments)
    return model


def test_the_model_stays_as_it_is():
    model = small(optimizer="adam", loss="mse")
    before = [value.copy() for value in model.get_weights()]
    policies = [layer.dtype_policy.name for layer in model.layers]
    random_state = random.getstate()
    memory.memory_report(model, 8, "mixed_float16")
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert type(model.optimizer) is keras.optimizers.Adam
    assert random.getstate() == random_state
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)


def test_names_of_later_layers_are_not_used_up():
    before = layers.Dense(1).name
    memory.memory_report(small(), 8)
    own = 2  # small() makes two
    number = int(before.removeprefix("dense").lstrip("_") or 0)
    assert layers.Dense(1).name == f"dense_{number + own + 1}"


def test_several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    outputs = {"sum": layers.Dense(2)(a + b), "kind": layers.Dense(5)(a)}
    model = keras.Model({"a": a, "b": b}, outputs)
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = {"sum": "mse", "kind": sparse}
    assert memory.memory_report(model, 8, loss=loss).activations > 0


def test_sizes_that_the_model_does_not_tell_come_from_data():
    model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
    data = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
    report = memory.memory_report(model, 1000, data=data)
    assert report.activations >= 1000 * (4 + 1 + 3) * 4
    assert not model.built
    with pytest.raises(ValueError, match=r"data=\(x, y\)"):
        memory.memory_report(model, 8)
    variable = keras.Sequential([keras.Input((None, 4)), layers.GRU(2)])
    with pytest.raises(ValueError, match="None"):
        memory.memory_report(variable, 8)


def test_without_a_policy_the_layers_keep_theirs():
    policy = keras_mp.Policy("mixed_bfloat16", float32=["head"])

    def model_under(policy):
        model = keras.Sequential([keras.Input((256,))])
        model.add(layers.Dense(256, name="body"))
        model.add(layers.Dense(256, name="head"))
        keras_mp.compile(model, "sgd", "mse", policy=policy)
        return model

    kept = memory.memory_report(model_under(policy), 4096)
    asked = memory.memory_report(model_under("float32"), 4096, policy)
    assert kept.policy == asked.policy == "mixed_bfloat16"
    assert kept.activations == asked.activations
    full = memory.memory_report(model_under("float32"), 4096)
    assert kept.activations != full.activations


class Own(keras.Model):
    """A model of a class that is not registered."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithoutConfig(keras.Model):
    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        return self.dense(x)


def test_models_of_own_classes():
    data = np.ones((2, 3), "float32"), np.ones((2, 4), "float32")
    model = Own()
    model(data[0])
    report = memory.memory_report(model, 8, "mixed_float16", data=data)
    assert report.weights == 4 * (3 * 4 + 4)
    model = WithoutConfig(layers.Dense(4))
    model(data[0])
    with pytest.raises(ValueError, match=r"Give its class get_config\(\)"):
        memory.memory_report(model, 8, data=data)


def kinds_of_operations(optimizer):
    """Return the kinds of operations in the step of many small variables."""
    loss = "mse"
    equal = [layers.Dense(4) for _ in range(4)]
    model = keras.Sequential([keras.Input((4,)), *equal])
    step, _, _ = trace.trace(
        trace.recipe(model),
        trace.specs_of(model, 8, loss, None),
        "mixed_float16",
        optimizer,
        loss,
    )
    found, queue = set(), [step.graph]
    while queue:
        graph = queue.pop()
        for op in graph.get_operations():
            found.add(op.type)
            queue += graphs.functions(graph, op)
    return found


def test_the_updates_are_those_of_the_device():
    assert "ResourceApplyGradientDescent" in kinds_of_operations("sgd")
    stacked = "ResourceApplyAdam" not in kinds_of_operations("adam")
    assert stacked == (not tf.config.list_logical_devices("GPU"))


def test_a_model_trains_after_its_step_was_traced():
    model = small(optimizer="adam", loss="mse", policy="mixed_float16")
    data = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    for _ in range(2):
        memory.memory_report(model, 8)
        history = model.fit(*data, verbose=0).history
        assert np.isfinite(history["loss"][0])
