"""The command line: what it refuses and how it says so."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_mp import cli, commands, hardware
from keras_mp.export import formats

X = np.linspace(0, 1, 40, dtype="float32").reshape(10, 4)
Y = np.arange(10) % 3


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(path)
    return str(path)


def refused(capsys, *options):
    """Run ``train``, which is to refuse; return what it wrote to stderr."""
    assert cli.main(["train", *map(str, options)]) == 2
    message = capsys.readouterr().err
    assert "it needs:" in message and "it got:" in message
    assert "what to do:" in message and "Traceback" not in message
    return message


BROKEN_DATA = {
    "no y": ({"x": X}, "y missing"),
    "no arrays": ({}, "no array: x, y missing"),
    "x_val alone": ({"x": X, "y": Y, "x_val": X}, "y_val missing"),
    "lengths": ({"x": X, "y": Y[:9]}, "10 in x and 9 in y"),
    "validation lengths": (
        {"x": X, "y": Y, "x_val": X, "y_val": Y[:2]},
        "10 in x_val and 2 in y_val",
    ),
    "objects": ({"x": np.array([[1], [2, 3]], object), "y": Y[:2]}, "dtype object"),
    "text": ({"x": X, "y": np.array(["cat"] * 10)}, "dtype <U3"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "shape (0, 4)"),
    "scalar": ({"x": X, "y": np.array(1)}, "shape ()"),
    "NaN": ({"x": np.where(X == X[2, 0], np.nan, X), "y": Y}, "first in sample 2"),
    "infinite y": ({"x": X, "y": np.where(Y == 1, np.inf, Y)}, "infinite values"),
    "one sample": ({"x": X[:1], "y": Y[:1]}, "1 sample"),
}


@pytest.mark.parametrize("arrays, expected", BROKEN_DATA.values(), ids=BROKEN_DATA)
def test_data_that_cannot_be_trained_on(capsys, tmp_path, model_file, arrays, expected):
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)
    message = refused(capsys, "--model", model_file, "--data", data)
    assert f"--data {data}" in message and expected in message


def test_missing_and_foreign_files(capsys, tmp_path, model_file):
    other = tmp_path / "other.h5"
    other.write_text("something else")
    foreign = tmp_path / "foreign.keras"
    foreign.write_text("something else")
    absent = tmp_path / "absent"
    for model, data, expected in (
        (f"{absent}.keras", other, "no such file"),
        (other, other, "not in this format"),
        (foreign, other, "not in this format"),
        (model_file, f"{absent}.npz", "no such file"),
        (model_file, other, "another format"),
    ):
        assert expected in refused(capsys, "--model", model, "--data", data)


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--model", "a.keras"], "--model without --data"),
        (["--data", "a.npz"], "--data without --model"),
        (["--task", "text", "--model", "a.keras"], "leave out --task"),
        (["--loss", "mse"], "--loss mse"),
        (["--optimizer", "sgd"], "--optimizer sgd"),
        (["--output", __file__], "--output"),
        (["--replicas", "2", "--workers", "3"], "--replicas 2 --workers 3"),
    ],
)
def test_options_that_do_not_go_together(capsys, tmp_path, options, expected):
    assert expected in refused(capsys, "--output", tmp_path, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "0"],
        ["--replicas", "two"],
        ["--workers", "0"],
        ["--policy", "float64"],
        ["--learning-rate", "-1"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "inf"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
    ],
)
def test_values_that_argparse_refuses(capsys, options):
    with pytest.raises(SystemExit) as error:
        cli.main(["train", *options])
    assert error.value.code == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_a_missing_package_names_its_extra(capsys, monkeypatch, tmp_path, module):
    util = commands.importlib.util
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda n: None if n == module else find(n))
    assert "pip install matplotlib scikit-learn" in refused(
        capsys, "--output", tmp_path
    )


@pytest.mark.long
def test_export(capsys, tmp_path, model_file):
    out = tmp_path / "model.tflite"
    assert cli.main(["export", model_file, str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}: tflite" in said and "verified: predictions differ" in said
    assert cli.main(["export", model_file, str(out)]) == 2
    assert "on the command line --overwrite" in capsys.readouterr().err
    again = ["export", model_file, str(out), "--overwrite", "--no-verify"]
    assert cli.main(again) == 0
    assert "verified" not in capsys.readouterr().out


def test_export_of_no_model(capsys, tmp_path):
    assert cli.main(["export", str(tmp_path / "a.keras"), str(tmp_path / "b")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "advised", "expected"),
    [
        ("all", "float32", ["mixed_bfloat16", "mixed_float16"]),
        ("auto", "mixed_float16", ["mixed_float16"]),
        ("auto", "float32", []),
        ("mixed_float16", "mixed_bfloat16", ["mixed_float16"]),
    ],
)
def test_which_precisions_are_trained(monkeypatch, wanted, advised, expected):
    advice = hardware.Recommendation(advised, "why")
    monkeypatch.setattr(hardware, "recommend", lambda: advice)
    assert commands.policies_of_train(wanted) == expected


def test_the_formats_to_choose_from_are_those_there_are():
    assert set(cli.FORMATS) == set(formats.FORMATS)


def started(*command, **options):
    """Return what a process of ``command`` has printed, once it has ended."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("command", [[], *([name] for name in commands.COMMANDS)])
def test_help_does_not_wait_for_tensorflow(command):
    script = "import runpy, sys; runpy.run_module('keras_mp', run_name='__main__')"
    watched = (
        "import atexit, sys; sys.orig_argv = ['python', '-m', 'keras_mp']; "
        "atexit.register(lambda: print('started', 'tensorflow' in sys.modules)); "
    )
    done = started("-c", watched + script, *command, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "usage: keras-mp" in done.stdout and "started False" in done.stdout


def test_the_module_runs_and_prints_nothing_of_tensorflow(tmp_path):
    done = started("-m", "keras_mp", "lint", str(tmp_path / "absent.keras"))
    assert done.returncode == 2
    assert done.stderr.lstrip().startswith("keras-mp lint: ")


def test_a_script_that_is_no_command_has_everything_at_once():
    """A stand-in for what the package offers saves the import of TensorFlow."""
    script = (
        "import sys, types; api = types.ModuleType('keras_mp.api'); "
        "vars(api).update(__all__=['Policy'], Policy='it', __version__='1'); "
        "sys.modules[api.__name__] = api; import keras_mp; "
        "print(vars(keras_mp).get('Policy'))"
    )
    assert started("-c", script).stdout == "it\n"
