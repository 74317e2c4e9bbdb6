"""Data that a layer rounds beyond recognition is warned of, by the input's name."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mp
from keras_mp import inputs

SMALL = np.linspace(-1, 1, 8, dtype="float32").reshape(4, 2)
LARGE = 1e6 * SMALL
IDS = np.array([[1, 2], [3, 4], [5, 2049], [7, 8]], "float32")


def functional():
    price, rest = keras.Input((2,), name="price"), keras.Input((2,), name="rest")
    flat = layers.Flatten(name="flat")(price)
    x = layers.Concatenate(name="both")([layers.Dense(2, name="reads")(flat), rest])
    return keras.Model([price, rest], layers.Dense(1, name="head")(x), name="net")


def sequential():
    return keras.Sequential(
        [keras.Input((2,), name="price"), layers.Dense(1, name="reads")], name="net"
    )


def unbuilt():
    return keras.Sequential(
        [layers.Flatten(), layers.Dense(1, name="reads")], name="net"
    )


class Net(keras.Model):
    def __init__(self, inner=None):
        super().__init__(name="net")
        self.inner = inner or layers.Dense(1, name="reads")

    def call(self, x):
        return self.inner(x)


def warned(model, x, policy="mixed_float16"):
    keras_mp.compile(model, "sgd", "mse", policy=policy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs.check(model, x)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("make", [sequential, functional])
def test_numbers_beyond_float16_are_named(make):
    x = LARGE if make is sequential else [LARGE, SMALL]
    (message,) = warned(make(), x)
    assert "Input 'price' of model 'net' holds 1e+06" in message
    assert "'reads' (Dense) reads it in float16" in message
    assert "ends at 65,504" in message and "float32=['reads']" in message


@pytest.mark.parametrize(
    "x", [{"price": LARGE, "rest": SMALL}, (LARGE, SMALL)], ids=type
)
def test_inputs_in_any_structure(x):
    assert "'price'" in warned(functional(), x)[0]


def test_an_input_behind_layers_that_follow():
    (message,) = warned(functional(), [SMALL, LARGE])
    assert "'rest'" in message and "'head'" in message


def test_a_subclassed_model_rounds_by_itself():
    (message,) = warned(Net(), LARGE)
    assert "'0' of model 'net'" in message and "'net' (Net)" in message


def test_a_sequential_model_without_input():
    (message,) = warned(unbuilt(), LARGE)
    assert "'reads'" in message


def test_whole_numbers_that_have_no_16_bits():
    (message,) = warned(sequential(), IDS)
    assert "2049" in message and "up to 2,048" in message
    (message,) = warned(sequential(), IDS[:2] + 256, "mixed_bfloat16")
    assert "260" in message and "up to 256" in message
    assert warned(sequential(), IDS[:2]) == []
    assert warned(sequential(), IDS + 0.5) == []  # rounded, as any measurement is


@pytest.mark.parametrize(
    "policy", ["float32", keras_mp.Policy("mixed_float16", ["reads"])], ids=str
)
def test_float32_reads_all(policy):
    assert warned(sequential(), LARGE, policy) == []


@pytest.mark.parametrize("make", [Net, lambda inner: keras.Sequential([inner])])
def test_layers_that_read_data_are_left_in_peace(make):
    embedding = make(layers.Embedding(80_000, 2))
    assert warned(embedding, IDS) == []
    normalization = make(layers.Normalization(mean=0.0, variance=1e12))
    assert warned(normalization, LARGE) == []


def test_a_nested_model_is_looked_into():
    outer = keras.Input((2,), name="outer")
    model = keras.Model(outer, sequential()(outer), name="whole")
    (message,) = warned(model, LARGE)
    assert "'outer' of model 'whole'" in message and "'reads'" in message


def test_a_dataset_is_looked_at_and_not_used_up():
    data = tf.data.Dataset.from_tensor_slices((LARGE, SMALL[:, :1])).batch(2)
    assert "'price'" in warned(sequential(), data)[0]
    assert warned(sequential(), (x for x in [LARGE])) == []  # would be used up
    assert warned(sequential(), None) == []


def test_to_look_at_a_shuffled_dataset_would_shuffle_it_otherwise():
    def shuffled():
        return tf.data.Dataset.from_tensor_slices(np.arange(8.0)).shuffle(8, seed=1)

    def orders(data):
        return [list(data.as_numpy_iterator()) for _ in range(2)]

    data = shuffled()
    assert warned(sequential(), data) == []
    assert orders(data) == orders(shuffled())


def test_a_generator_behind_a_dataset_is_not_run():
    def numbers():
        raise AssertionError("run")
        yield

    spec = tf.TensorSpec((2,))
    data = tf.data.Dataset.from_generator(numbers, output_signature=spec).batch(2)
    assert warned(sequential(), data) == []


def test_sparse_tensors_pass():
    assert warned(sequential(), tf.sparse.from_dense(LARGE)) == []


def test_a_subclassed_model_inside_a_functional_one():
    outer = keras.Input((2,), name="outer")
    model = keras.Model(outer, Net()(outer), name="whole")
    (message,) = warned(model, LARGE)
    assert "'outer' of model 'whole'" in message and "'net' (Net)" in message


def test_fit_checks_once_compiled():
    model = sequential()
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    keras_mp.compile(model, "sgd", "mse")
    with pytest.warns(UserWarning, match="'price'") as caught:
        model.fit(LARGE, SMALL[:, :1], verbose=0)
    assert len(caught) == 1
    model.fit(SMALL, SMALL[:, :1], verbose=0)


def test_what_is_infinite_anyway_is_no_matter_of_16_bits():
    assert warned(sequential(), np.array([[np.inf, 1.0]])) == []
