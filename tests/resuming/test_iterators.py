"""The place of a tf.data iterator: what can be saved, and where it goes on."""

import pytest
import tensorflow as tf

from keras_mp.resuming import iterators


def numbers():
    return tf.data.Dataset.range(20).shuffle(9, seed=1).batch(3).prefetch(1)


def listed(iterator):
    return [each.numpy().tolist() for each in iterator]


@pytest.mark.parametrize("drawn", [0, 2, 6])
def test_it_goes_on(drawn):
    tf.random.set_seed(1)
    first = iter(numbers())
    for _ in range(drawn):
        next(first)
    files = iterators.saved(first)
    second = iter(numbers())
    iterators.restore(second, files)
    assert listed(second) == listed(first)


@pytest.mark.parametrize(
    "data",
    [
        numbers().map(lambda x: tf.numpy_function(lambda y: y, [x], tf.int64)),
        numbers().map(lambda x: tf.random.uniform([])),
    ],
    ids=["python", "random"],
)
def test_what_cannot_be_saved(data):
    assert iterators.saved(iter(data)) is None


def test_what_is_no_iterator():
    assert iterators.saved(iter([1, 2])) is None
