"""`FlightRecorder` writes what repeats an overflow: few files, small, and whole."""

import json
import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from support.processes import mirrored, run_alone

import keras_mp
from keras_mp import flight
from keras_mp.callbacks import FlightRecorder, OverflowMonitor, skip
from keras_mp.scaling import DynamicLossScale

ROWS, BATCH = 48, 4


def data():
    x = np.random.default_rng(0).normal(size=(ROWS, 8)).astype("float32")
    return x, x[:, :1] ** 2


def same_batches():
    return {
        name: np.tile(each[:BATCH], (ROWS // BATCH, 1))
        for name, each in zip("xy", data(), strict=True)
    }


#: So that each step has nearly the same gradients.
STEADY = {"rate": 0.0, "learning_rate": 1e-4}


def compiled(rule=None, rate=0.3, learning_rate=0.01, **options):
    keras.utils.set_random_seed(1)
    names = ["first", "second"]
    orthogonal = {"kernel_initializer": "orthogonal"}
    chain = [layers.Dense(8, name=name, **orthogonal) for name in names]
    inputs = [keras.Input((8,)), *chain, layers.Dropout(rate), layers.Dense(1)]
    model = keras.Sequential(inputs, name="net")
    rule = rule or DynamicLossScale(initial_scale=8.0)
    keras_mp.compile(
        model,
        keras.optimizers.SGD(learning_rate),
        "mse",
        policy="mixed_float16",
        scaling=rule,
        **options,
    )
    return model


def fit(model, *callbacks, x=None, y=None, bad=(), **arguments):
    """Fit, with overflows in the steps ``bad``, and return what was warned of."""
    own_x, own_y = data()
    for step in bad:
        own_x[BATCH * step - 1] = 6e4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model.fit(
            own_x if x is None else x,
            own_y if y is None else y,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
            **arguments,
        )
    ours = [each for each in caught if issubclass(each.category, UserWarning)]
    return [str(each.message) for each in ours]


def test_what_is_written(tmp_path):
    model = compiled()
    recorder = FlightRecorder(tmp_path / "new" / "flights")
    (message,) = fit(model, recorder, bad=[5])
    (file,) = recorder.files
    assert message == (
        "FlightRecorder: step 5 skipped on replica 0: the output of first overflowed "
        f"(forward). Repeat it by `keras-mp replay {file} --model MODEL.keras`."
    )
    written = flight.read(file)
    assert (written.model, written.step, written.replica) == ("net", 5, 0)
    assert written.culprits[0].layer == "net/first"
    assert "first/kernel" in written.variables[0]
    assert written.scales.tolist() == [8.0] * 5
    x, y = data()
    assert written.batch.x[:3].tolist() == x[16:19].tolist()
    assert written.batch.y.tolist() == y[16:20].tolist()
    assert written.batch.sample_weight is None and written.rows is None
    with pytest.warns(UserWarning, match="weights of model 'net' are not those"):
        assert keras_mp.replay(file, model).culprits[0].layer == "net/first"


@pytest.mark.long
def test_each_cause_once(tmp_path):
    recorder = FlightRecorder(tmp_path)
    fit(compiled(), recorder, bad=[2, 5, 8])
    assert [flight.read(file).step for file in recorder.files] == [2]


@pytest.mark.long
def test_an_expected_overflow_is_not_written(tmp_path):
    rule = DynamicLossScale(initial_scale=2.0**14, growth_interval=2)
    model = compiled(rule, **STEADY)
    monitor, recorder = OverflowMonitor(), FlightRecorder(tmp_path)
    messages = fit(model, monitor, recorder, **same_batches(), epochs=3)
    assert monitor.expected == monitor.skipped > 0
    assert (recorder.files, messages) == ([], [])


@pytest.mark.long
def test_a_first_scale_is_not_written(tmp_path):
    recorder = FlightRecorder(tmp_path)
    model = compiled(DynamicLossScale(initial_scale=2.0**23), **STEADY)
    fit(model, recorder, **same_batches())
    assert model.optimizer.stats()["skipped"] > 0
    assert recorder.files == []


def test_with_a_monitor_a_batch_runs_again_once(tmp_path, monkeypatch):
    calls = []
    original = skip.rerun

    def rerun(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(skip, "rerun", rerun)
    monitor, recorder = OverflowMonitor(), FlightRecorder(tmp_path)
    fit(compiled(), monitor, recorder, bad=[5])
    assert len(calls) == len(monitor.reports) == len(recorder.files) == 1


@pytest.mark.long
def test_the_number_of_files_is_bounded(tmp_path):
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    names = []
    for run in range(4):
        recorder = FlightRecorder(tmp_path, max_files=2)
        fit(compiled(), recorder, bad=[run + 2])
        names.append(os.path.basename(recorder.files[0]))
    left = sorted(os.listdir(tmp_path))
    assert left == ["notes.txt", *sorted(names)[-2:]]
    assert names[-1] in left


@pytest.mark.long
def test_what_a_killed_process_left_is_removed(tmp_path):
    partial = tmp_path / ".overflow-20260101-000000-step-3-replica-0.npz.tmp"
    others = tmp_path / ".overflow-20260101-000000-step-3-replica-1.npz.tmp"
    partial.write_text("half")
    others.write_text("being written by another machine")
    fit(compiled(), FlightRecorder(tmp_path))
    assert list(pathlib.Path(tmp_path).iterdir()) == [others]


@pytest.mark.long
def test_of_a_large_batch_a_part_is_written(tmp_path):
    model = compiled()
    recorder = FlightRecorder(tmp_path, max_bytes=100)
    fit(model, recorder, bad=[5])
    written = flight.read(recorder.files[0])
    assert written.rows == (2, 4)
    assert "of its batch, rows 2 to 3 are in the file" in written.text()
    assert written.batch.x.shape == (2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert keras_mp.replay(recorder.files[0], model).culprits


@pytest.mark.long
def test_a_batch_that_is_too_large_is_left_out(tmp_path):
    recorder = FlightRecorder(tmp_path, max_bytes=8)
    fit(compiled(), recorder, bad=[5])
    written = flight.read(recorder.files[0])
    assert written.batch is None
    assert "larger than max_bytes=8, and no part of it that fits" in written.left_out


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(flight, "write", full)
    recorder = FlightRecorder(tmp_path)
    (message,) = fit(compiled(), recorder, bad=[5])
    assert "could not write" in message and "No space left on device" in message
    assert recorder.files == []


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("way", [{}, {"jit_compile": True}])
def test_training_is_the_same_with_and_without(tmp_path, way):
    results = []
    for callbacks in ([], [FlightRecorder(tmp_path)]):
        model = compiled(**way)
        fit(model, *callbacks, bad=[5], epochs=2)
        variables = [*model.variables, *model.optimizer.variables]
        results.append([np.asarray(each).tobytes() for each in variables])
    assert results[0] == results[1]


def test_without_loss_scaling(tmp_path):
    model = compiled()
    model.compile("sgd", "mse")
    (message,) = fit(model, FlightRecorder(tmp_path / "none"))
    assert "FlightRecorder has nothing to watch" in message
    assert not (tmp_path / "none").exists()


def test_what_it_refuses(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="needs the path of a folder. Got a file"):
        FlightRecorder(file)
    for name in ("max_files", "max_bytes"):
        with pytest.raises(ValueError, match=f"{name}=0.*1 or more"):
            FlightRecorder(tmp_path, **{name: 0})


@pytest.mark.long
def test_the_share_of_the_second_replica(tmp_path):
    found = run_alone(__file__, str(tmp_path))
    assert found == {"replica": 1, "x": 6e4, "rows": 2, "layer": "net/first"}


def on_two_replicas(folder):
    with mirrored(2).scope():
        model = compiled()
    recorder = FlightRecorder(folder)
    fit(model, recorder, bad=[5])
    written = flight.read(recorder.files[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = keras_mp.replay(recorder.files[0], model)
    return {
        "replica": written.replica,
        "x": float(written.batch.x.max()),
        "rows": len(written.batch.x),
        "layer": diagnosis.culprits[0].layer,
    }


if __name__ == "__main__":
    import sys

    print(json.dumps(on_two_replicas(sys.argv[1])))
