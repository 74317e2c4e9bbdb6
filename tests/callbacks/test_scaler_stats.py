"""What `ScalerStats` puts into the logs of `fit`, who sees it, and what it costs."""

import csv
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp.callbacks import ScalerStats

KEYS = {
    "scaler_scale",
    "scaler_steps",
    "scaler_applied",
    "scaler_skipped",
    "scaler_consecutive_skipped",
    "scaler_growths",
    "scaler_backoffs",
    "scaler_nonfinite_losses",
}

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = np.ones((24, 1), "float32")
POISONED = X.copy()
POISONED[[4, 5, 9]] = np.inf  # in batches of two: the third and the fifth overflow


def compiled(policy=None, **kwargs):
    """A small model, compiled through Keras or, given a policy, in one call."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    if policy == "mixed_float16":
        # Only what a test breaks overflows at this scale.
        kwargs["scaling"] = keras_mp.scaling.DynamicLossScale(initial_scale=1024.0)
    if policy:
        keras_mp.compile(model, "sgd", loss="mse", policy=policy, **kwargs)
    else:
        optimizer = keras_mp.LossScaleOptimizer(
            keras.optimizers.SGD(1e-3), initial_scale=64.0, dynamic_growth_steps=4
        )
        model.compile(optimizer, loss="mse", **kwargs)
    return model


def fit(model, *callbacks, x=X, **kwargs):
    """Fit for 12 steps an epoch."""
    arguments = {"batch_size": 2, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(x, Y, callbacks=list(callbacks), **arguments).history


class Seen(keras.callbacks.Callback):
    """Keeps what the logs hold of the scaler after each step and epoch."""

    def on_train_begin(self, logs=None):
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


@pytest.fixture
def reads(monkeypatch):
    """Return a list that grows by the step count at each reading of the device."""
    read = []
    stats = keras_mp.LossScaleOptimizer.stats

    def counted(self):
        read.append(stats(self)["steps"])
        return stats(self)

    monkeypatch.setattr(keras_mp.LossScaleOptimizer, "stats", counted)
    return read


def as_keys(stats):
    return {f"scaler_{name}": value for name, value in stats.items()}


@pytest.mark.parametrize("policy", [None, "mixed_float16"])
def test_history_holds_what_the_optimizer_says(policy):
    model = compiled(policy)
    history = fit(model, ScalerStats(), x=POISONED)
    last = {key: history[key][-1] for key in history if key.startswith("scaler_")}
    assert set(last) == KEYS
    assert last == as_keys(model.optimizer.stats())
    assert last["scaler_steps"] == 12
    assert last["scaler_skipped"] == 2


def test_values_over_several_epochs():
    history = fit(compiled(), ScalerStats(), epochs=3)
    assert history["scaler_steps"] == [12, 24, 36]
    assert history["scaler_applied"] == [12, 24, 36]
    assert history["scaler_skipped"] == [0, 0, 0]
    assert history["scaler_growths"] == [3, 6, 9]  # every four steps
    assert history["scaler_scale"] == [64.0 * 8, 64.0 * 64, 64.0 * 512]
    assert history["scaler_backoffs"] == [0, 0, 0]


def test_skipped_steps_are_counted():
    model = compiled("mixed_float16")
    history = fit(model, ScalerStats(), x=POISONED)
    assert history["scaler_skipped"] == [2]
    assert history["scaler_applied"] == [10]
    assert history["scaler_backoffs"] == [2]
    assert history["scaler_scale"] == [256.0]
    assert history["scaler_consecutive_skipped"] == [0]
    assert history["scaler_nonfinite_losses"] == [2]
    assert np.isfinite(history["loss"]).all()


def test_ongoing_run_of_skipped_steps():
    broken = X.copy()
    broken[-6:] = np.inf
    history = fit(compiled("mixed_float16"), ScalerStats(), x=broken)
    assert history["scaler_consecutive_skipped"] == [3]


def test_csv_logger_writes_them(tmp_path):
    path = tmp_path / "log.csv"
    fit(compiled(), ScalerStats(), keras.callbacks.CSVLogger(path), epochs=2)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert set(rows[0]) >= KEYS | {"loss"}
    assert [int(row["scaler_steps"]) for row in rows] == [12, 24]
    assert [float(row["scaler_scale"]) for row in rows] == [64.0 * 8, 64.0 * 64]


def test_early_stopping_watches_them():
    stop = keras.callbacks.EarlyStopping(
        monitor="scaler_skipped", mode="min", patience=1
    )
    model = compiled("mixed_float16")
    history = fit(model, ScalerStats(), stop, x=POISONED, epochs=5)
    assert history["scaler_skipped"] == [2, 4]
    assert stop.best == 2


def test_callbacks_placed_after_it_see_them_and_those_before_do_not():
    before, after = Seen(), Seen()
    fit(compiled(), before, ScalerStats(frequency=1), after, epochs=2)
    assert [logs["scaler_steps"] for logs in after.batches] == list(range(1, 25))
    assert [logs["scaler_steps"] for logs in after.epochs] == [12, 24]
    assert not any(KEYS & set(logs) for logs in before.batches)
    assert all("loss" in logs for logs in after.batches)


def test_per_epoch_logs_of_steps_hold_nothing():
    seen = Seen()
    fit(compiled(), ScalerStats(), seen)
    assert not any(KEYS & set(logs) for logs in seen.batches)
    assert set(seen.epochs[0]) == KEYS | {"loss"}


def test_progress_bar_shows_them(capsys):
    fit(compiled(), ScalerStats(), verbose=2)
    shown = capsys.readouterr().out
    assert all(key in shown for key in KEYS)
    assert "scaler_scale: 512" in shown


def test_tensor_board_writes_them(tmp_path):
    pytest.importorskip("tensorboard")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(compiled(), ScalerStats(), board)
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"epoch_scaler_scale" in events


def test_validation_logs_stay():
    history = fit(compiled(), ScalerStats(), validation_data=(X, Y))
    assert set(history) == KEYS | {"loss", "val_loss"}


@pytest.mark.parametrize(
    ("policy", "frequency"),
    [(None, "epoch"), ("mixed_float16", 4), ("mixed_float16", "epoch")],
)
def test_same_numbers_under_steps_per_execution(policy, frequency):
    plain = fit(compiled(policy), ScalerStats(frequency), x=POISONED, epochs=2)
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    bundled = fit(
        compiled(policy, steps_per_execution=3),
        ScalerStats(frequency),
        x=POISONED,
        epochs=2,
    )
    for key in KEYS:
        assert plain[key] == bundled[key], key


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        ("epoch", [12, 24]),
        (1, list(range(1, 25))),
        (4, [4, 8, 12, 16, 20, 24]),
        (5, [5, 10, 15, 20]),
        (12, [12, 24]),
        (24, [24]),
        (25, []),
        (np.int64(12), [12, 24]),
    ],
    ids=str,
)
def test_device_is_read_no_more_often_than_told(frequency, expected, reads):
    fit(compiled(), ScalerStats(frequency), epochs=2)
    assert reads == expected


def test_twelve_steps_by_four_are_three_reads(reads):
    fit(compiled(), ScalerStats(4))
    assert len(reads) == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        ("epoch", [12, 24]),
        (1, [3, 6, 9, 12, 15, 18, 21, 24]),
        (4, [6, 9, 12, 18, 21, 24]),  # the first chance after 4, 8, 12, 16, 20, 24
        (6, [6, 12, 18, 24]),
        (10, [12, 21]),
    ],
)
def test_reads_under_steps_per_execution(frequency, expected, reads):
    fit(compiled(steps_per_execution=3), ScalerStats(frequency), epochs=2)
    assert reads == expected


def test_steps_are_counted_across_epochs_and_anew_in_each_fit(reads):
    model, callback = compiled(), ScalerStats(8)
    seen = Seen()
    fit(model, callback, seen, epochs=2)
    assert reads == [8, 16, 24]
    # Up to the next reading the last one is repeated, at the end of an epoch too.
    shown = [logs.get("scaler_steps") for logs in seen.batches]
    assert shown == [None] * 7 + [8] * 8 + [16] * 8 + [24]
    assert [logs["scaler_steps"] for logs in seen.epochs] == [8, 24]
    del reads[:]
    fit(model, callback, seen)
    assert reads == [32]  # its eighth step, not its fourth
    assert "scaler_steps" not in seen.batches[0]  # nothing of the earlier fit
    del reads[:]
    fit(model, ScalerStats(), epochs=2)
    assert reads == [48, 60]


def test_initial_epoch(reads):
    history = fit(compiled(), ScalerStats(5), epochs=4, initial_epoch=2)
    assert reads == [5, 10, 15, 20]
    assert history["scaler_steps"] == [10, 20]


def test_epochs_of_given_length(reads):
    history = fit(compiled(), ScalerStats(3), epochs=2, steps_per_epoch=4)
    assert reads == [3, 6]
    assert history["scaler_steps"] == [3, 6]


@pytest.mark.parametrize("frequency", ["epoch", 1])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_without_our_optimizer_it_warns_once_and_writes_nothing(policy, frequency):
    model = compiled(policy, guard=False)
    seen = Seen()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, ScalerStats(frequency), seen, epochs=2)
    ours = [w for w in caught if "ScalerStats" in str(w.message)]
    assert len(ours) == 1
    assert "keras_mp.compile" in str(ours[0].message)
    assert set(history) == {"loss"}
    assert all(set(logs) == {"loss"} for logs in seen.batches + seen.epochs)


def test_loss_scaling_of_keras_itself_has_no_counters():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), loss="mse"
    )
    with pytest.warns(UserWarning, match="keras_mp.LossScaleOptimizer"):
        history = fit(model, ScalerStats())
    assert set(history) == {"loss"}


@pytest.mark.parametrize(
    "frequency", [0, -1, 1.5, 4.0, True, None, "batch", "Epoch", [4]], ids=str
)
def test_bad_frequency_is_refused(frequency):
    with pytest.raises(ValueError, match="'epoch' or a whole number") as info:
        ScalerStats(frequency)
    assert repr(frequency) in str(info.value)


def test_epoch_without_an_applied_step_is_reported():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras_mp.LossScaleOptimizer("sgd"), "mse")
    x = np.full((4, 2), np.inf, "float32")
    with pytest.warns(UserWarning, match="None of the last 2 training steps"):
        model.fit(
            x,
            np.ones((4, 1)),
            batch_size=2,
            verbose=0,
            callbacks=[keras_mp.callbacks.ScalerStats()],
        )


def test_in_bfloat16_the_scale_is_1_and_not_to_blame():
    history = fit(compiled("mixed_bfloat16"), ScalerStats(), x=POISONED)
    assert history["scaler_scale"] == [1.0] and history["scaler_skipped"] == [2]
    with pytest.warns(UserWarning, match="None of the last 12") as caught:
        fit(compiled("mixed_bfloat16"), ScalerStats(), x=X * np.nan)
    (message,) = [str(w.message) for w in caught if "None of" in str(w.message)]
    assert "loss scale" not in message and "look for inf or NaN" in message
