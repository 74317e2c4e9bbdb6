"""``keras-mp diagnose``: its answer, its exit status, and what it refuses."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import cli

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = X[:, :1]


def saved(path, factor=1.0, compiled=True):
    with keras_mp.policy_scope("mixed_float16"):
        hidden = layers.Dense(8, name="hidden")
        model = keras.Sequential(
            [keras.Input((4,)), hidden, layers.Dense(1)], name="net"
        )
    hidden.kernel.assign(hidden.kernel * factor)
    if compiled:
        keras_mp.compile(model, "sgd", "mse", scaling="dynamic")
    model.save(path)
    return str(path)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=X, y=Y)
    return str(path)


def test_a_clean_batch_ends_with_0(capsys, tmp_path, data):
    model = saved(tmp_path / "model.keras")
    assert cli.main(["diagnose", model, "--data", data]) == 0
    said = capsys.readouterr().out
    assert "loss scale          32768" in said and "\nClean: " in said


def test_a_culprit_ends_with_1(capsys, tmp_path, data):
    model = saved(tmp_path / "model.keras", factor=1e6)
    assert cli.main(["diagnose", model, "--data", data, "--json"]) == 1
    (culprit,) = json.loads(capsys.readouterr().out)["culprits"]
    assert culprit["layer"] == "net/hidden" and culprit["phase"] == "forward"


def test_rows_scale_and_weights_are_what_was_given(capsys, tmp_path):
    data, x = tmp_path / "data.npz", X.copy()
    x[10] = np.nan
    np.savez(data, x=x, y=Y, sample_weight=np.zeros(40))
    model = saved(tmp_path / "model.keras")
    options = ["diagnose", model, "--data", str(data), "--json", "--scale", "8"]
    assert cli.main(options) == 1
    assert "row 10 holds NaN" in capsys.readouterr().out
    assert cli.main([*options, "--batch-size", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scale"] == 8.0 and found["loss"] == 0.0


def test_a_model_that_was_not_compiled_needs_a_loss(capsys, tmp_path, data):
    model = saved(tmp_path / "model.keras", compiled=False)
    assert cli.main(["diagnose", model, "--data", data, "--loss", "mse"]) == 0
    assert cli.main(["diagnose", model, "--data", data]) == 2
    assert "add --loss" in capsys.readouterr().err
    assert cli.main(["diagnose", model, "--data", data, "--loss", "nonsense"]) == 2
    assert "--loss nonsense" in capsys.readouterr().err


def test_a_picture(capsys, tmp_path, data):
    model, picture = saved(tmp_path / "model.keras"), tmp_path / "ranges.png"
    options = ["diagnose", model, "--data", data, "--plot"]
    assert cli.main([*options, str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    for refused in (tmp_path / "absent" / "ranges.png", tmp_path / "ranges.doc"):
        assert cli.main([*options, str(refused)]) == 2
        assert f"--plot {refused}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"x": X[:, :3], "y": Y}, "reshape the arrays"),
        ({"x": X, "y": Y[:9]}, "40 in x and 9 in y"),
        ({"x": X, "y": Y, "sample_weight": np.ones(3)}, "3 in sample_weight"),
        ({"x": X}, "y missing"),
    ],
)
def test_data_that_does_not_fit(capsys, tmp_path, arrays, expected):
    np.savez(tmp_path / "data.npz", **arrays)
    model = saved(tmp_path / "model.keras")
    assert cli.main(["diagnose", model, "--data", str(tmp_path / "data.npz")]) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
