"""A step that was written overflows again, in the same place, and changes nothing."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import cli, flight
from keras_mp.callbacks import FlightRecorder
from keras_mp.scaling import DynamicLossScale


def dropping():
    """A model whose forward pass overflows for few of its random numbers."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(32, name="first", kernel_initializer="identity"),
            layers.Dropout(0.5, seed=7, name="drop"),
            layers.Dense(1, name="wide", kernel_initializer=constant(2000.0)),
            layers.Dense(1, name="head", kernel_initializer=constant(1e-4)),
        ],
        name="net",
    )
    rule = DynamicLossScale(initial_scale=8.0)
    optimizer = keras.optimizers.SGD(0.0)
    keras_mp.compile(model, optimizer, "mse", policy="mixed_float16", scaling=rule)
    return model


def constant(value):
    return keras.initializers.Constant(value)


X, Y = np.ones((64, 32), "float32"), np.zeros((64, 1), "float32")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return a model, the file of its model and that of its first overflow."""
    folder = tmp_path_factory.mktemp("flights")
    model = dropping()
    recorder = FlightRecorder(folder / "flights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, Y, batch_size=1, verbose=0, shuffle=False, callbacks=[recorder])
    path = str(folder / "model.keras")
    model.save(path)
    return model, path, recorder.files[0]


def seeds(model):
    return model.get_layer("drop").seed_generator.state.numpy().tolist()


@pytest.mark.long
def test_the_random_numbers_are_those_of_the_step(recorded):
    model, _, file = recorded
    before = seeds(model), [each.copy() for each in model.get_weights()]
    diagnosis = keras_mp.replay(file, model)
    (culprit,) = diagnosis.culprits
    written = flight.read(file)
    assert written.culprits[0][:4] == culprit[:4]
    assert culprit[:4] == ("net/wide", "output", "forward", "overflow")
    assert diagnosis.scale == written.scale == 8.0
    assert seeds(model) == before[0]
    for one, other in zip(model.get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(one, other)
    # With other random numbers some are clean, but not the replay.
    outcomes = set()
    for state in range(20):
        model.get_layer("drop").seed_generator.state.assign([state, 0])
        diagnosis = keras_mp.diagnose(model, *written.batch, scale=8.0)
        outcomes.add(bool(diagnosis.culprits))
        assert keras_mp.replay(file, model).culprits
        if len(outcomes) == 2:
            break
    assert outcomes == {True, False}


@pytest.mark.long
def test_other_weights_are_warned_of(recorded):
    _, path, file = recorded
    model = keras_mp.load_model(path)
    keras_mp.replay(file, model)  # these are the same
    model.get_layer("head").kernel.assign([[1.0]])
    with pytest.warns(UserWarning, match="weights of model 'net' are not those"):
        keras_mp.replay(file, model)


@pytest.mark.long
def test_another_model(recorded):
    model = keras.Sequential([keras.Input((32,)), layers.Dense(1)], name="other")
    model.compile("sgd", "mse")
    match = "'net', which has 1 random generators. Got model 'other', which has 0"
    with pytest.raises(ValueError, match=match):
        keras_mp.replay(recorded[2], model)


def test_no_model(recorded):
    with pytest.raises(TypeError, match="needs a Keras model. Got 'model.keras'"):
        keras_mp.replay(recorded[2], "model.keras")


def test_a_file_without_a_batch(recorded, tmp_path):
    model, _, file = recorded
    path = tmp_path / "flight.npz"
    flight.write(flight.read(file)._replace(batch=None, left_out="too large"), path)
    with pytest.raises(ValueError, match="holds none: too large. It says: step"):
        keras_mp.replay(path, model)


# The command.


def test_the_command(recorded, capsys):
    _, path, file = recorded
    assert cli.main(["replay", file, "--model", path]) == 1
    output = capsys.readouterr().out
    assert "on replica 0 of model 'net'" in output
    assert "the output of wide overflowed (forward) at the loss scale 8" in output
    assert "warning" not in output
    assert output.index("now:\nloss") < output.index("float32=['wide']")


@pytest.mark.long
def test_the_command_in_a_process(recorded):
    _, path, file = recorded
    command = [sys.executable, "-m", "keras_mp", "replay", file, "--model", path]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert '"layer": "net/wide"' in done.stdout and done.stdout.startswith("{")


def test_the_command_refuses(recorded, capsys, tmp_path):
    _, path, file = recorded
    assert cli.main(["replay", str(tmp_path / "none.npz"), "--model", path]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.main(["replay", file, "--model", str(tmp_path / "none.keras")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.main(["replay", path, "--model", path]) == 2
    assert "damaged or of another kind" in capsys.readouterr().err
