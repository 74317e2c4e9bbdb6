"""How Keras's `fit` goes through an epoch, on the oldest and newest Keras."""

import functools

import keras
import numpy as np
import pytest
from support.resumed import arrays, made

from keras_mp import private


class Look(keras.callbacks.Callback):
    def __init__(self, look):
        super().__init__()
        self.look = look

    def on_train_begin(self, logs=None):
        self.found = self.look(private.epochs.epoch_iterator_of(self.model))


def looked(look, **options):
    callback = Look(look)
    options = {"epochs": 2, "verbose": 0, **options}
    history = made().fit(**arrays() | options, callbacks=[callback])
    return callback.found, history


@pytest.mark.long
def test_epoch_iterator_of():
    assert private.epochs.epoch_iterator_of(made()) is None
    found, _ = looked(lambda steps: steps.num_batches)
    assert found == 8


def test_enumerate_with():
    seen = []

    def record(enumerate_epoch):
        @functools.wraps(enumerate_epoch)
        def recorded():
            for first, last, iterator in enumerate_epoch():
                seen.append((first, last))
                yield first, last, iterator

        return recorded

    looked(lambda steps: private.epochs.enumerate_with(steps, record))
    assert seen == [(step, step) for step in range(8)] * 2


@pytest.mark.long
def test_element_specs():
    (x, y), _ = looked(private.epochs.element_specs)
    assert (x.shape, x.dtype) == ((None, 4), "float32")
    assert y.shape == (None, 2)


@pytest.mark.long
def test_new_iterator():
    found, _ = looked(lambda steps: len(list(private.epochs.new_iterator(steps))))
    assert found == 8


@pytest.mark.long
@pytest.mark.parametrize("shuffle, rows", [(True, False), ("batch", True)])
def test_shuffling(shuffle, rows):
    found, _ = looked(private.epochs.shuffles_rows_of_batches, shuffle=shuffle)
    assert found is rows
    found, _ = looked(private.epochs.shuffles_without_seed, shuffle=shuffle)
    assert not found  # `made` sets a seed


@pytest.mark.long
def test_py_dataset_of():
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.ones((4, 4), "float32"), np.ones((4, 2), "float32")

    data = Data()
    given = {"x": data, "y": None, "batch_size": None}
    assert looked(private.epochs.py_dataset_of, **given)[0] is data
    assert looked(private.epochs.py_dataset_of)[0] is None


@pytest.mark.long
def test_begin_with_epoch():
    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            private.epochs.begin_with_epoch(self.model, 1)

    model = made()
    options = {"epochs": 3, "verbose": 0, "callbacks": [Begin()]}
    assert model.fit(**arrays(), **options).epoch == [1, 2]
    private.epochs.begin_with_epoch(model, None)
    assert model.fit(**arrays(), epochs=1, verbose=0).epoch == [0]
