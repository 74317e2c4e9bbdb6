"""Training that is stopped and goes on, and what it is compared by."""

import contextlib
import warnings

import keras
import numpy as np

import keras_mp
from keras_mp.resuming import values

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(58, 4)).astype("float32")
Y = _RNG.normal(size=(58, 2)).astype("float32")
BATCH = 8  # of which an epoch has eight, the last with two rows

# Windows of three micro-batches are half full where these tests stop.
OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.1),
    "window": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=3),
    "average": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    ),
}


class Stopped(Exception):
    """Raised by `Stop`."""


class Stop(keras.callbacks.Callback):
    """Ends ``fit`` by an exception after so many batches."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Stopped


def made(policy="mixed_bfloat16", optimizer="window", strategy=None, **compiling):
    """Return a model with random numbers and statistics, as a new process has it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    scope = contextlib.nullcontext() if strategy is None else strategy.scope()
    with scope, keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(4),
                keras.layers.Dropout(0.5),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(2),
            ]
        )
        compiling = {"metrics": ["mae"], "guard": True, **compiling}
        keras_mp.compile(model, OPTIMIZERS[optimizer](), "mse", **compiling)
    return model


def trained(model, data, callbacks=(), **options):
    """Train, and return all that it left: bytes of variables, and the History."""
    options = {"epochs": 3, "verbose": 0, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`shuffle=True` was passed", UserWarning)
        warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        history = model.fit(**data, callbacks=list(callbacks), **options)
    return bytes_of(model), history.history, history.epoch


def bytes_of(model):
    """Return the bytes of each copy of each variable that training changes."""
    state = values.read(values.variables_of(model))
    return {key: [copy.tobytes().hex() for copy in each] for key, each in state.items()}


def arrays():
    """Return what ``fit`` takes of arrays."""
    return {"x": X, "y": Y, "batch_size": BATCH}
