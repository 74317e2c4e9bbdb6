"""Training that was stopped anywhere goes on as if it had not been."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp.callbacks import BackupAndRestore
from keras_mp.resuming import values

RNG = np.random.default_rng(0)
X = RNG.normal(size=(58, 4)).astype("float32")
Y = RNG.normal(size=(58, 2)).astype("float32")
BATCH = 8  # of which an epoch has eight, the last with two rows


class Stopped(Exception):
    pass


class Stop(keras.callbacks.Callback):
    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Stopped


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return X[rows], Y[rows]


def pipeline():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def noisy(x, y):
    return x + tf.random.uniform([]), y


def through_python(x, y):
    x = tf.numpy_function(lambda each: each, [x], tf.float32)
    return tf.ensure_shape(x, [None, 4]), y


def generated():
    while True:
        for index in range(6):
            yield Batches()[index]


DATA = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": BATCH},
    "shuffled batches": lambda: (
        {"x": X, "y": Y, "batch_size": BATCH} | {"shuffle": "batch"}
    ),
    "pipeline": lambda: {"x": pipeline().shuffle(30).batch(BATCH).prefetch(2)},
    "all in the buffer": lambda: {"x": pipeline().shuffle(99).batch(BATCH)},
    "repeated": lambda: (
        {"x": pipeline().shuffle(30).repeat().batch(BATCH)} | {"steps_per_epoch": 5}
    ),
    "python": lambda: {"x": pipeline().shuffle(30).batch(BATCH).map(through_python)},
    "random": lambda: {"x": pipeline().shuffle(30).batch(BATCH).map(noisy)},
    "unknown length": lambda: {
        "x": pipeline().filter(lambda x, y: x[0] > -9).shuffle(9).batch(BATCH)
    },
    "PyDataset": lambda: {"x": Batches(), "shuffle": True},
    "PyDataset in threads": lambda: {"x": Batches(workers=2), "shuffle": True},
    "generator": lambda: {"x": generated(), "steps_per_epoch": 6},
}


def made(policy="mixed_bfloat16", optimizer=None, **compiling):
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    with keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(4),
                keras.layers.Dropout(0.5),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(2),
            ]
        )
    optimizer = optimizer or keras.optimizers.Adam(0.1, gradient_accumulation_steps=3)
    keras_mp.compile(model, optimizer, "mse", metrics=["mae"], **compiling)
    return model


def trained(model, data, callbacks=(), **options):
    options = {"epochs": 3, "verbose": 0, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`shuffle=True` was passed", UserWarning)
        warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        history = model.fit(**data, callbacks=list(callbacks), **options)
    state = values.read(values.variables_of(model))
    return (
        {key: [copy.tobytes() for copy in each] for key, each in state.items()},
        history.history,
        history.epoch,
    )


def gone_on(make, data, folder, stops, **options):
    """Train, stop after so many batches each time, and go on to the end."""
    for after in stops:
        with pytest.raises(Stopped):
            trained(
                make(),
                data(),
                [BackupAndRestore(folder, **options), Stop(after)],
            )
    last = BackupAndRestore(folder, **options)
    return trained(make(), data(), [last]), last


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data(data, tmp_path):
    straight = trained(made(), data())
    found, last = gone_on(made, data, tmp_path, [5, 6, 3], every=2)
    assert last.restored is not None
    assert found == straight
