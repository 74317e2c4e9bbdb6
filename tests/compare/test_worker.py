"""One training of a comparison: its batches, and what it notices."""

import types

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp.compare import worker


@pytest.mark.filterwarnings("ignore:None of the last . training steps")
def test_a_skipped_step_that_moves_a_weight_is_counted():
    with keras_mp.policy_scope("mixed_float16"):
        layers = [keras.layers.Dense(4), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
    scaling = keras_mp.scaling.DynamicLossScale(2.0**40, max_scale=2.0**40)
    keras_mp.compile(model, "sgd", "mse", scaling=scaling)
    lockstep = worker.Lockstep(types.SimpleNamespace(recv=list, send=print))
    stats = keras_mp.callbacks.ScalerStats(frequency=1)

    class Moves(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model.layers[0].bias.assign_add([1.0])

    x = np.ones((8, 4), "float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[stats, lockstep])
    assert (lockstep.skipped, lockstep.changing) == (2, 0)
    model.fit(
        x, x[:, :1], batch_size=4, verbose=0, callbacks=[stats, Moves(), lockstep]
    )
    assert lockstep.changing == 2


def test_in_bfloat16_steps_may_be_skipped_and_there_is_no_scale():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16")
    lockstep = worker.Lockstep(types.SimpleNamespace(recv=list, send=print))
    stats = keras_mp.callbacks.ScalerStats(frequency=1)
    x = np.ones((8, 4), "float32")
    x[:4] = np.nan
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x, x[4:][[0] * 8, :1], callbacks=[stats, lockstep], **options)
    assert (lockstep.skips, lockstep.changing) == ([True, False], 0)
    assert lockstep.scales == [None, None]


def test_batches_are_shuffled_alike_for_a_seed():
    x = np.arange(10)
    passes = [
        [
            first
            for first, _ in worker.batches(x, x, 4, seed).take(4).as_numpy_iterator()
        ]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[0], passes[2])
    assert not np.array_equal(passes[0][:2], passes[0][2:])  # another epoch
