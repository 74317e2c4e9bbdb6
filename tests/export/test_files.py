"""What is there is kept, or replaced in whole."""

import os

import pytest
from support.exported import dense

import keras_mp
from keras_mp.export import agreement

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


@pytest.mark.long
def test_what_is_there_is_kept_unless_told(tmp_path):
    model = dense()
    for name in ("model", "model.tflite"):
        first = keras_mp.export(model, tmp_path / name)
        with pytest.raises(ValueError, match="overwrite=True"):
            keras_mp.export(model, tmp_path / name)
        again = keras_mp.export(model, tmp_path / name, overwrite=True)
        assert again.path == first.path == tmp_path / name
    assert sorted(os.listdir(tmp_path)) == ["model", "model.tflite"]


@pytest.mark.parametrize("name", ["model", "model.tflite"])
@pytest.mark.parametrize("stage", ["verify", "move"])
def test_a_failed_export_keeps_what_is_there(tmp_path, monkeypatch, name, stage):
    model = dense()
    path = keras_mp.export(model, tmp_path / name).path
    before = contents(path)

    def fail(source, *rest):
        if stage == "verify" or "new" in source.parts:
            raise OSError("no")
        return rename(source, *rest)

    rename = os.rename
    if stage == "verify":
        monkeypatch.setattr(agreement, "checked", fail)
    else:
        monkeypatch.setattr(os, "rename", fail)
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        keras_mp.export(model, path, overwrite=True)
    assert contents(path) == before and os.listdir(tmp_path) == [name]


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {each: each.read_bytes() for each in files if each.is_file()}


def test_other_folders_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("")
    with pytest.raises(ValueError, match="other contents"):
        keras_mp.export(dense(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis").is_file()
