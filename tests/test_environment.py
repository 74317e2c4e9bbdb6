"""Where and how a training runs: threads, several models, many builds, full disks.

Elsewhere: several scaled optimizers in ``protection/test_step.py`` and
``test_bfloat16.py``; forked processes, all that ``support/processes.py`` starts, which
train under strategies; new ones, the commands in ``compare/test_runner.py``; backups on
a full disk in ``callbacks/test_backup_and_restore.py``.
"""

import errno
import functools
import pathlib
import threading

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import cli, plot, saved_files
from keras_mp.callbacks import FlightRecorder, NumericsMonitor

X = np.linspace(0, 1, 128, dtype="float32").reshape(32, 4)
Y = X[:, :1]


def built(policy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    keras_mp.compile(model, "adam", "mse", policy=policy)
    return model


def trained(policy):
    model = built(policy)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    return model.get_weights()


@functools.cache
def alone(policy):
    """Return what becomes of weights that are trained with nothing beside."""
    return trained(policy)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_two_models_under_two_policies_train_as_if_alone():
    policies = ["mixed_float16", "mixed_bfloat16"]
    models = [built(policy) for policy in policies]
    for start in range(0, 32, 8):
        for model in models:
            rows = slice(start, start + 8)
            model.train_on_batch(X[rows], Y[rows])
    for model, policy in zip(models, policies, strict=True):
        assert_same(model.get_weights(), alone(policy))


@pytest.mark.long
def test_a_session_that_is_cleared_between_trainings():
    expected = trained("mixed_float16")
    keras.backend.clear_session()
    assert_same(trained("mixed_float16"), expected)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.long
def test_statistics_are_read_by_threads_during_fit():
    model = built("mixed_float16")
    ended, readings, errors = threading.Event(), [], []

    def read():
        try:
            while not ended.is_set():
                readings.append(model.optimizer.stats())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    model.fit(X, Y, batch_size=8, epochs=5, shuffle=False, verbose=0)
    ended.set()
    for thread in threads:
        thread.join()
    assert not errors and readings
    assert all(0 <= each["steps"] <= 20 for each in readings)
    expected = built("mixed_float16")
    expected.fit(X, Y, batch_size=8, epochs=5, shuffle=False, verbose=0)
    assert_same(model.get_weights(), expected.get_weights())


def test_no_policy_leaks_from_one_trial_to_the_next():
    """As KerasTuner builds: many models, some of which cannot be built."""
    for policy in ("mixed_float16", "mixed_bfloat16", "float32") * 2:
        with pytest.raises(LookupError), keras_mp.policy_scope(policy):
            keras.layers.Dense(1)
            raise LookupError("a build that fails")
        with pytest.raises(ValueError):
            built("no such policy")
        assert built(policy).dtype_policy.name == policy
        assert keras.config.dtype_policy().name == "float32"
        assert keras.layers.Dense(1).compute_dtype == "float32"


# Disks that are full, and folders that nothing can be written to.


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_picture_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "scale.png"
    plot.scale([1.0, 2.0], path)
    before = path.read_bytes()
    monkeypatch.setattr(saved_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plot.scale([2.0, 1.0], path)
    assert [each.name for each in tmp_path.iterdir()] == ["scale.png"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
def test_training_goes_on_without_a_monitors_file(tmp_path, there):
    """A file in place of the folder fails for every user, root as well."""
    (tmp_path / "taken").write_text("")
    path = tmp_path / "taken" / "numbers.csv" if there else tmp_path
    model = built("mixed_float16")
    with pytest.warns(UserWarning, match="NumericsMonitor could not write.*goes on"):
        model.fit(
            X,
            Y,
            batch_size=8,
            shuffle=False,
            verbose=0,
            callbacks=[NumericsMonitor(every=1, csv=path)],
        )
    assert_same(model.get_weights(), alone("mixed_float16"))


@pytest.mark.long
def test_training_goes_on_without_the_logs_of_tensorboard(tmp_path):
    (tmp_path / "taken").write_text("")
    model = built("mixed_float16")
    monitor = NumericsMonitor(every=1, log_dir=tmp_path / "taken" / "logs")
    with pytest.warns(UserWarning, match="NumericsMonitor could not write.*goes on"):
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    assert_same(model.get_weights(), alone("mixed_float16"))


def test_training_goes_on_without_a_recorders_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    model = built("mixed_float16")
    with pytest.warns(UserWarning, match="FlightRecorder could not write.*goes on"):
        model.fit(
            X, Y, verbose=0, callbacks=[FlightRecorder(tmp_path / "taken" / "flights")]
        )
    assert model.optimizer.stats()["steps"] == 1


@pytest.mark.long
def test_a_command_on_a_full_disk_ends_with_one_line(tmp_path, monkeypatch, capfd):
    built("float32").save(tmp_path / "model.keras")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    out = tmp_path / "model.tflite"
    out.write_text("what was there")
    command = ["export", str(tmp_path / "model.keras"), str(out), "--overwrite"]
    assert cli.main(command) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("keras-mp export: ") and last.endswith("left on device")
    assert out.read_text() == "what was there"
