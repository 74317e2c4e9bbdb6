"""Callbacks that watch the loss do as in the same run with Keras.

The run begins with steps that are skipped, while the scale comes down: the state in
which a loss of 0 misled every one of them.
"""

import csv

import keras
import numpy as np
import pytest

import keras_mp

X = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
Y = 4 * X.sum(1, keepdims=True)

#: Float16 for the head as well, which is what makes Keras skip.
LOW = keras_mp.Policy("mixed_float16", allow=["head"])

#: The two compute some roundings of float16 apart, and Adam carries those on.
CLOSE = {"rtol": 2e-2}


def compiled(ours):
    """Return a model that skips its first steps in float16."""
    keras.utils.set_random_seed(0)
    inputs, hidden = keras.Input((16,)), keras.layers.Dense(64, activation="relu")
    model = keras.Sequential([inputs, hidden, keras.layers.Dense(1, name="head")])
    adam = keras.optimizers.Adam(1e-2)
    keras_mp.compile(model, adam, "mse") if ours else model.compile(adam, "mse")
    return model


def early_stopping(folder):
    return keras.callbacks.EarlyStopping("loss", patience=8, restore_best_weights=True)


def stopping_at_a_baseline(folder):
    return keras.callbacks.EarlyStopping("loss", patience=6, baseline=300.0)


def checkpoint(folder):
    path = folder / "best.weights.h5"
    return keras.callbacks.ModelCheckpoint(
        path, "loss", save_best_only=True, save_weights_only=True
    )


def plateau(folder):
    return keras.callbacks.ReduceLROnPlateau("loss", patience=6, factor=0.5)


def terminate(folder):
    return keras.callbacks.TerminateOnNaN()


def logger(folder):
    return keras.callbacks.CSVLogger(folder / "log.csv")


def backup(folder):
    return keras.callbacks.BackupAndRestore(folder / "backup")


class StopsOnce(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 8:
            raise InterruptedError


def run(ours, make, folder):
    """Return what a run with a callback leaves behind."""
    folder.mkdir()
    (keras_mp.set_policy(LOW) if ours else keras.config.set_dtype_policy(LOW.name))
    model = compiled(ours)
    arguments = {"batch_size": 64, "epochs": 20, "verbose": 0}
    if make is backup:
        with pytest.raises(InterruptedError):
            model.fit(X, Y, callbacks=[make(folder), StopsOnce()], **arguments)
        model = compiled(ours)
    history = model.fit(X, Y, callbacks=[make(folder)], **arguments)
    result = {
        "epochs": np.array(history.epoch),
        "loss": np.array(history.history["loss"]),
        "rate": float(model.optimizer.learning_rate),
        "after": model.evaluate(X, Y, verbose=0),
    }
    for path in folder.glob("*.weights.h5"):
        model.load_weights(path)
        result["saved"] = model.evaluate(X, Y, verbose=0)
    for path in folder.glob("*.csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        result["written"] = np.array([float(row["loss"]) for row in rows])
    return result


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize(
    "make",
    [
        early_stopping,
        stopping_at_a_baseline,
        checkpoint,
        plateau,
        terminate,
        logger,
        backup,
    ],
)
def test_a_run_that_begins_with_skipped_steps_ends_as_with_keras(make, tmp_path):
    ours, theirs = run(True, make, tmp_path / "a"), run(False, make, tmp_path / "b")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name, **CLOSE)
    assert len(ours["loss"]) > 5 and ours["after"] < 200  # it has learned


def test_the_run_begins_with_skipped_steps():
    keras_mp.set_policy(LOW)
    model = compiled(True)
    model.fit(X, Y, batch_size=64, epochs=3, verbose=0)
    assert model.optimizer.stats()["skipped"] >= 2


# Losses that are not finite.


def fit(ours, y, callback, epochs=3):
    """Fit in float16 with ours, or in float32 with Keras, in eight steps an epoch."""
    keras.config.set_dtype_policy("float32")
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(1)])
    arguments = {"policy": "mixed_float16"} if ours else {}
    (keras_mp.compile if ours else keras.Model.compile)(
        model, "sgd", "mse", **arguments
    )
    seen = Steps()
    model.fit(X, y, 8, epochs, verbose=0, shuffle=False, callbacks=[seen, callback])
    return seen.steps, model


class Steps(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_terminate_on_nan_stops_as_in_float32_where_no_loss_is_finite(bad):
    ours, _ = fit(True, np.full_like(Y, bad), keras.callbacks.TerminateOnNaN())
    theirs, _ = fit(False, np.full_like(Y, bad), keras.callbacks.TerminateOnNaN())
    assert ours == theirs == 1


def test_terminate_on_nan_goes_on_after_one_bad_batch_among_good_ones():
    y = np.zeros_like(Y)
    y[20] = np.nan
    steps, model = fit(True, y, keras.callbacks.TerminateOnNaN())
    assert steps == 24
    assert model.optimizer.stats()["nonfinite_losses"] == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_are_those_of_the_best_epoch_that_had_a_loss(bad):
    stop = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True)
    _, model = fit(True, np.full_like(Y, bad), stop, epochs=9)
    assert stop.stopped_epoch == 2  # NaN is never better
    assert np.isfinite(model.get_weights()[0]).all()
