"""What is rounded on the way from an input is found, and nothing else is."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mp

SMALL = np.linspace(-1, 1, 8, dtype="float32").reshape(4, 2)
LARGE = 1e6 * SMALL
TARGET = SMALL[:, :1]


def ends(x):
    return layers.Dense(1)(layers.Dense(2, name="reads")(x))


def graph(between):
    x = keras.Input((2,), name="x")
    return keras.Model(x, ends(between(x)))


class Table(keras.Model):
    def __init__(self):
        super().__init__(name="table")
        self.ids = layers.Embedding(5000, 2)
        self.inner, self.head = layers.Dense(2), layers.Dense(1)

    def call(self, x):
        both = ops.concatenate([self.ids(x["id"]), x["income"]], axis=-1)
        return self.head(self.inner(both))


def faults(make, x, **kwargs):
    """Return what ``fit`` of ``make()`` warns of."""
    with keras_mp.policy_scope("mixed_float16"):
        model = make()
    keras_mp.compile(model, "sgd", "mse", **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, TARGET, verbose=0)
    return [str(each.message) for each in caught if "Input '" in str(each.message)]


PATHS = {
    "operation": lambda x: x * 1.0,
    "slice": lambda x: x[:, :1],
    "concatenation": lambda x: ops.concatenate([x, x / 1e6], axis=-1),
    "reshape": lambda x: ops.reshape(x, (-1, 2)),
    "follows": lambda x: layers.Flatten()(x),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_followed(path):
    (message,) = faults(lambda: graph(PATHS[path]), LARGE)
    assert "Input 'x'" in message and "'reads' (Dense)" in message


@pytest.mark.long
def test_what_counts_is_the_number_that_is_cast():
    assert faults(lambda: graph(lambda x: x * 1e-4), LARGE) == []
    (message,) = faults(lambda: graph(lambda x: x * 1e6), SMALL)
    assert "holds 1e+06" in message
    late = LARGE * np.array([0, 1], "float32")  # the second column is cut off
    assert faults(lambda: graph(lambda x: x[:, :1]), late) == []


@pytest.mark.long
@pytest.mark.parametrize("eager", [False, True])
def test_a_model_of_ones_own_beside_an_embedding(eager):
    ids = np.array([1, 2049, 4097, 3])
    for kind in ("int32", "float32"):
        x = {"id": ids.astype(kind), "income": LARGE}
        (message,) = faults(Table, x, run_eagerly=eager)
        assert "Input 'income'" in message and "'table' (Table)" in message
        x = {"id": ids.astype(kind), "income": SMALL}
        assert faults(Table, x, run_eagerly=eager) == []


def test_whole_numbers_in_int32_beside_floats_are_no_matter_of_casts():
    class Pick(layers.Layer):
        def call(self, x, ids):
            at = ops.argmax(ids, axis=-1)
            return ops.take_along_axis(x, at[:, None, None], axis=1)[:, 0]

    def make():
        ids = keras.Input((2,), dtype="int32", name="ids")
        return keras.Model(ids, ends(Pick()(layers.Embedding(5000, 4)(ids), ids)))

    assert faults(make, np.full((4, 2), 4097, "int32")) == []


def test_inputs_in_nested_structures():
    class Nested(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.head = layers.Dense(2), layers.Dense(1)

        def call(self, x):
            return self.head(self.inner(x["a"]["b"]))

    (message,) = faults(Nested, {"a": {"b": LARGE}})
    assert "Input 'a/b'" in message


def test_a_model_without_a_call_is_seen_in_its_step():
    class Step(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = keras.Sequential([layers.Dense(2, name="reads")])

        def train_step(self, data):
            return {"loss": ops.mean(self.net(data[0]))}

    (message,) = faults(Step, LARGE)
    assert "'reads' (Dense)" in message


def test_a_fit_that_takes_any_keywords():
    class Task(keras.Sequential):
        def fit(self, x, y=None, **kwargs):
            return super().fit(x, y, **kwargs)

    price = [keras.Input((2,), name="price")]
    (message,) = faults(lambda: Task([*price, layers.Dense(2), layers.Dense(1)]), LARGE)
    assert "'price'" in message
