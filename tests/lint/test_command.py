"""``keras-mp lint``: what it prints of a file, and the code that it ends with."""

import json
import zipfile

import keras
import pytest
from keras import layers
from support.lint import dense, model_of

import keras_mp
from keras_mp import cli


def saved(tmp_path, model):
    path = tmp_path / "model.keras"
    model.save(path)
    return str(path)


def test_command_on_a_file_of_keras(capsys, tmp_path):
    model = model_of(dense(10, "softmax"))
    model.compile("adam", "mse")
    path = saved(tmp_path, model)
    assert cli.main(["lint", path, "--batch-size", "100"]) == 1
    said = capsys.readouterr().out
    assert said.count("net/head") == 4 and "batch size 104" in said
    assert said.endswith("errors: 1, warnings: 2, notes: 2\n")


def test_command_on_a_file_of_keras_mp(capsys, tmp_path):
    """Its guards are not in the file, and come back when it is loaded."""
    model = model_of(dense(10, "softmax"))
    keras_mp.compile(model, "adam", "categorical_crossentropy")
    assert cli.main(["lint", saved(tmp_path, model)]) == 0
    assert capsys.readouterr().out.endswith("errors: 0, warnings: 0, notes: 1\n")


def test_command_reports_rules_and_does_not_warn(capsys, tmp_path):
    policy = keras_mp.Policy("mixed_bfloat16", float32=["nothing"])
    assert cli.main(["lint", saved(tmp_path, model_of(dense(dtype=policy)))]) == 1
    assert "rule 'nothing' matches no layer" in capsys.readouterr().out


def test_command_in_json(capsys, tmp_path):
    path = saved(tmp_path, model_of(dense(10, dtype="mixed_bfloat16")))
    assert cli.main(["lint", path, "--json"]) == 1
    read = json.loads(capsys.readouterr().out)
    findings = [keras_mp.Finding(**finding) for finding in read]
    assert [f.rule for f in findings] == ["head", "alignment"]
    clean = saved(tmp_path, model_of(dense(dtype="float32")))
    assert cli.main(["lint", clean, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_command_refuses_what_is_no_model(capsys, tmp_path):
    with pytest.warns(UserWarning, match="not yet been built"):
        unbuilt = saved(tmp_path, keras.Sequential([layers.Dense(8)]))
    empty = tmp_path / "empty.keras"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("other", "")
    for path, expected in (
        (tmp_path / "absent.keras", "no such file"),
        (empty, "holds no config.json, so it is of another kind"),
        (unbuilt, "not built"),
    ):
        assert cli.main(["lint", str(path)]) == 2
        done = capsys.readouterr()
        assert expected in done.err and not done.out
    with pytest.raises(SystemExit) as error:
        cli.main(["lint", unbuilt, "--batch-size", "0"])
    assert error.value.code == 2


class Unregistered(layers.Dense):
    pass


def test_command_on_a_class_that_is_not_registered(capsys, tmp_path):
    path = saved(tmp_path, model_of(Unregistered(8)))
    assert cli.main(["lint", path]) == 2
    assert "keras_mp.lint" in capsys.readouterr().err
