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


# Several inputs and outputs: their names in the structures of a model.

STRUCTURES = {
    "lists": (["left", "right"], ["one", "other"]),
    "dicts": ({"left": "left", "right": "right"}, {"other": "other", "one": "one"}),
    "nested": ([["left"], "right"], ["one", "other"]),
}
INPUTS = {"left": X[:, :2], "right": X[:, 2:]}
SEVERAL = {f"x_{name}": each for name, each in INPUTS.items()}
SEVERAL |= {"y_one": Y, "y_other": 300 * Y}


def several(path, structure, compiled=True):
    """Save a model of two inputs and outputs; return it and its path."""
    inputs_in, outputs_in = STRUCTURES[structure]
    with keras_mp.policy_scope("mixed_float16"):
        inputs = {name: keras.Input((2,), name=name) for name in ("right", "left")}
        hidden = layers.Dense(8, name="hidden")(
            layers.Concatenate()(list(inputs.values()))
        )
        outputs = {n: layers.Dense(1, name=n)(hidden) for n in ("one", "other")}
        model = keras.Model(
            keras.tree.map_structure(inputs.get, inputs_in),
            keras.tree.map_structure(outputs.get, outputs_in),
            name="net",
        )
    if compiled:
        keras_mp.compile(model, "sgd", "mse")
    model.save(path)
    return model, str(path)


def expected_loss(model, structure, weights=1.0):
    """Return the loss of a model of two outputs, of which "one" is the first."""
    x = keras.tree.map_structure(INPUTS.get, STRUCTURES[structure][0])
    outputs = [np.asarray(each, "float32") for each in keras.tree.flatten(model(x))]
    targets = SEVERAL["y_one"], SEVERAL["y_other"]
    pairs = zip(outputs, targets, strict=True)
    loss = sum(np.mean(weights * (output - y)[:, 0] ** 2) for output, y in pairs)
    # A prediction of another batch size may differ by a rounding of float16.
    return pytest.approx(loss, rel=2**-10)


def loss_of(capsys, data, path, arrays, *options):
    """Return the loss that is printed for all samples of ``arrays``."""
    np.savez(data, **arrays)
    options = ["--batch-size", "40", "--scale", "8", "--json", *options]
    assert cli.main(["diagnose", path, "--data", str(data), *options]) == 0
    return json.loads(capsys.readouterr().out)["loss"]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_several_arrays_by_their_names(capsys, tmp_path, structure):
    model, path = several(tmp_path / "model.keras", structure)
    data, weights = tmp_path / "data.npz", np.linspace(0.0, 1.0, 40)
    found = loss_of(capsys, data, path, SEVERAL)
    assert found == expected_loss(model, structure)
    for names in (["sample_weight"], ["sample_weight_one", "sample_weight_other"]):
        arrays = {**SEVERAL, **dict.fromkeys(names, weights)}
        found = loss_of(capsys, data, path, arrays)
        assert found == expected_loss(model, structure, weights)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_named_loss_is_that_of_each_output_in_float32(capsys, tmp_path, structure):
    model, path = several(tmp_path / "model.keras", structure, compiled=False)
    found = loss_of(capsys, tmp_path / "data.npz", path, SEVERAL, "--loss", "mse")
    assert found == expected_loss(model, structure)


def test_an_input_of_several_is_named(capsys, tmp_path):
    _, path = several(tmp_path / "model.keras", "lists")
    right = INPUTS["right"].copy()
    right[3] = np.nan
    np.savez(tmp_path / "data.npz", **{**SEVERAL, "x_right": right})
    assert cli.main(["diagnose", path, "--data", str(tmp_path / "data.npz")]) == 1
    assert "right, input (input): nan; row 3 holds NaN" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"x": X, "y_one": Y, "y_other": Y}, "x (32, 4), y {"),
        ({"x_left": X, "x_right": X, "y": Y}, "'right': (32, 4)}, y (32, 1): "),
        ({**SEVERAL, "y_third": Y}, "y_third unknown"),
        ({**SEVERAL, "y_other": Y[:9]}, "40 in x_left and 9 in y_other"),
    ],
)
def test_several_arrays_that_do_not_fit(capsys, tmp_path, arrays, expected):
    _, path = several(tmp_path / "model.keras", "lists")
    np.savez(tmp_path / "data.npz", **arrays)
    assert cli.main(["diagnose", path, "--data", str(tmp_path / "data.npz")]) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message


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
