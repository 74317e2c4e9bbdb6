"""Damaged, forged and foreign files: refused by name, and none of them runs code."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
from support import damage
from support.flights import example

import keras_mp
from keras_mp import cli, data_files, flight
from keras_mp.compare import custom, tasks
from keras_mp.terminal import UserError

#: Of each file, the share of faults of each kind: what CI has time for, and all but
#: for the bits, of which there are too many.
SHARE = {"cuts": 0.1, "bits": 0.0005, "directory": 0.03}
ALL = SHARE | {"cuts": 1.0, "bits": 0.01, "directory": 1.0}

DAMAGED = (
    "Files of models, arrays and flights cut at each 64th byte, or with a bit flipped"
)

SOME_OR_ALL = pytest.mark.parametrize(
    "all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    keras_mp.compile(made, "sgd", "mse", policy="mixed_float16")
    return made


@pytest.fixture(scope="module")
def content(model, tmp_path_factory):
    """The bytes of the model's file."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return path.read_bytes()


def damaged(content, all_of_them):
    shares = ALL if all_of_them else SHARE
    yield from damage.cut(content, share=shares["cuts"])
    yield from damage.flipped(content, share=shares["bits"])
    # The directory at the end of an archive, where most can go wrong.
    directory = content.index(b"PK\x01\x02")
    for name, end in damage.flipped(content[directory:], shares["directory"]):
        yield f"directory, {name}", content[:directory] + end


def refused_or_same(read, is_same, path, needed):
    """Return what to call with the bytes of a file: it says what went wrong, or None.

    Args:
        read: Reads the file at ``path``.
        is_same: Whether what it returned is what the file held.
        path: Where to write the bytes.
        needed: Words of the remedy, one of which the message has.
    """

    def attempt(content):
        path.write_bytes(content)
        try:
            found = read(str(path))
        except (ValueError, UserError) as error:
            message = str(error)
            if str(path) in message and any(words in message for words in needed):
                return None
            return f"{type(error).__name__} without a file or a remedy: {message}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if is_same(found) else "read, with other numbers"

    return attempt


def loading(model, path):
    """Return the attempt to load the file of ``model``, its weights and its scale."""
    expected = [each.numpy() for each in (*model.variables, *model.optimizer.variables)]

    def is_same(loaded):
        found = (*loaded.variables, *loaded.optimizer.variables)
        return len(found) == len(expected) and all(
            np.array_equal(each.numpy(), value)
            for each, value in zip(found, expected, strict=True)
        )

    remedies = ["save the model again", "Update Keras", "ensure the file is"]
    return refused_or_same(keras_mp.load_model, is_same, path, remedies)


@SOME_OR_ALL
def test_a_model(model, content, tmp_path, all_of_them, check_faults):
    attempt = loading(model, tmp_path / "model.keras")
    with keras_mp.policy_scope("mixed_bfloat16"):
        found = damage.outcome(damaged(content, all_of_them), attempt)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    check_faults(DAMAGED, found)


def test_a_file_that_is_no_model(model, content, tmp_path, check_faults):
    attempt = loading(model, tmp_path / "model.keras")
    found = damage.outcome(damage.foreign_models(content), attempt)
    check_faults("`.keras` files that hold something else", found)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_folder_and_an_hdf5_file_that_were_cut(model, content, tmp_path, name):
    folder = tmp_path / "model"
    (tmp_path / "model.keras").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extractall(folder)
    keras_mp.load_model(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:64])
    with pytest.raises(ValueError, match="is damaged.*Take another copy"):
        keras_mp.load_model(folder)
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ValueError, match=r"model\.h5.*no HDF5 file.*another copy"):
        keras_mp.load_model(tmp_path / "model.h5")


def test_no_path():
    with pytest.raises(TypeError, match="load_model.*must be a path.*Got a None"):
        keras_mp.load_model(None)


# What a newer Keras saved, and what only the user's own code knows.


def test_a_newer_file_that_can_be_loaded_is_loaded(model, content, tmp_path):
    attempt = loading(model, tmp_path / "model.keras")
    assert attempt(damage.of_newer_keras(content)) is None


def test_a_newer_file_that_cannot_be_loaded_names_the_version(content, tmp_path):
    (tmp_path / "old.keras").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "old.keras") as archive:
        config = archive.read("config.json").decode()
    unknown = config.replace('"class_name": "Dense"', '"class_name": "Denser"')
    path = tmp_path / "model.keras"
    path.write_bytes(damage.of_newer_keras(content, config_json=unknown))
    words = r"model\.keras.*Keras 99\.1\.0.*Denser.*Update Keras"
    with pytest.raises((TypeError, ValueError), match=words):
        keras_mp.load_model(path)


class Unknown(keras.layers.Layer):
    """Is not registered."""


class Failing(keras.layers.Layer):
    """Cannot be made."""

    def __init__(self, fails=False, **kwargs):
        super().__init__(**kwargs)
        if fails:
            raise LookupError("an error of the user's own")

    def get_config(self):
        return super().get_config() | {"fails": True}


@pytest.mark.parametrize("layer", [Unknown, Failing])
def test_errors_of_the_users_own_classes_are_those_of_keras(layer, tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((2,)), layer()]).save(path)
    own = {} if layer is Unknown else {"custom_objects": {"Failing": Failing}}
    with pytest.raises(TypeError) as expected:
        keras.saving.load_model(path, **own)
    with pytest.raises(TypeError) as error:
        keras_mp.load_model(path, **own)
    assert str(error.value) == str(expected.value)


# Arrays.


@SOME_OR_ALL
def test_data(tmp_path, all_of_them, check_faults):
    x, y = np.arange(12, dtype="float32").reshape(6, 2), np.arange(6.0, dtype="float32")
    attempt = refused_or_same(
        lambda path: data_files.read(path, f"--data {path}"),
        lambda found: np.array_equal(found["x"], x) and np.array_equal(found["y"], y),
        tmp_path / "data.npz",
        ["what to do: "],
    )
    content = damage.arrays(x=x, y=y)
    found = damage.outcome(damaged(content, all_of_them), attempt)
    check_faults(DAMAGED, found)


@SOME_OR_ALL
def test_a_flight(tmp_path, all_of_them, check_faults):
    path = tmp_path / "flight.npz"
    given = example()
    flight.write(given, path)

    def is_same(found):
        return found.text() == given.text() and np.array_equal(
            found.batch.x["x"], given.batch.x["x"]
        )

    attempt = refused_or_same(
        flight.read, is_same, path, ["Take another one", "Update"]
    )
    content = path.read_bytes()
    found = damage.outcome(damaged(content, all_of_them), attempt)
    check_faults(DAMAGED, found)


def test_a_damaged_flight_is_refused_before_anything_runs(model, tmp_path):
    path = tmp_path / "flight.npz"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"flight\.npz.*Take another one"):
        keras_mp.replay(path, model)


# Commands: one message, and no traceback.


@pytest.fixture
def files(content, tmp_path):
    """Paths of a whole file of each kind, by name."""
    paths = {
        name: tmp_path / name for name in ("model.keras", "data.npz", "flight.npz")
    }
    paths["model.keras"].write_bytes(content)
    paths["data.npz"].write_bytes(damage.arrays(x=np.ones((4, 2)), y=np.ones((4, 1))))
    flight.write(example(), paths["flight.npz"])
    return paths


def commands(files, out):
    """Return the arguments of each command, by the file that it reads first."""
    model, data, recorded = map(str, files.values())
    train = ["train", "--model", model, "--data", data, "--output", str(out)]
    diagnose = ["diagnose", model, "--data", data]
    replay = ["replay", recorded, "--model", model]
    return {
        "train model": ("model.keras", train),
        "train data": ("data.npz", train),
        "export": ("model.keras", ["export", model, str(out / "out.tflite")]),
        "lint": ("model.keras", ["lint", model]),
        "diagnose model": ("model.keras", diagnose),
        "diagnose data": ("data.npz", diagnose),
        "replay model": ("model.keras", replay),
        "replay flight": ("flight.npz", replay),
    }


NAMES = list(commands(dict.fromkeys("abc", ""), pathlib.Path()))


@pytest.mark.parametrize("name", NAMES)
def test_a_command_refuses_a_damaged_file(files, tmp_path, capsys, name):
    damaged_file, arguments = commands(files, tmp_path)[name]
    path = files[damaged_file]
    content = path.read_bytes()
    last = content.index(b"PK\x01\x02") - 1  # byte of the members
    changed = content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :]
    for broken in (b"", content[:last], changed):
        path.write_bytes(broken)
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.count(f"keras-mp {arguments[0]}: ") == 1 and str(path) in said
        assert "Traceback" not in said and "RuntimeError" not in said


# Code in files.


@pytest.mark.parametrize("where", ["data.npz", "flight.npz", "weights"])
def test_nothing_is_unpickled(files, content, tmp_path, where):
    proof = tmp_path / "it ran"
    objects = damage.arrays(
        about=damage.pickled(proof), x=damage.pickled(proof), y=damage.pickled(proof)
    )
    if where == "weights":
        renamed = {"model_weights_h5": None, "model_weights_npz": objects}
        files["model.keras"].write_bytes(damage.edited(content, **renamed))
        with pytest.raises(ValueError):
            keras_mp.load_model(files["model.keras"])
    else:
        files[where].write_bytes(objects)
        with pytest.raises((ValueError, UserError), match=where):
            if where == "data.npz":
                data_files.read(str(files[where]), str(files[where]))
            else:
                flight.read(files[where])
    assert not proof.exists()
    # The same bytes do run where pickles are read, or this test would show nothing.
    (tmp_path / "objects.npz").write_bytes(objects)
    np.load(tmp_path / "objects.npz", allow_pickle=True)["x"]
    assert proof.exists()


def hostile(inner, proof):
    """Return a model that makes the file ``proof`` when its code runs."""
    path = str(proof)
    code = keras.layers.Lambda(
        lambda x: (__import__("pathlib").Path(path).touch(), x)[1]
    )
    layer = keras_mp.layers.Float32(code) if inner else code
    return keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(1)])


@pytest.mark.parametrize("inner", [False, True])
def test_a_hostile_file_runs_no_code(files, tmp_path, capsys, inner):
    proof = tmp_path / "it ran"
    made = hostile(inner, proof)
    made.compile("sgd", "mse")
    made.save(files["model.keras"])
    proof.unlink()
    with pytest.raises(ValueError, match="(?i)safe_mode"):
        keras_mp.load_model(files["model.keras"])
    for name, (file, arguments) in commands(files, tmp_path).items():
        if file == "model.keras" and name != "train model":
            assert cli.main(arguments) == 2, name
            said = capsys.readouterr().err
            assert "Traceback" not in said and str(files["model.keras"]) in said
    assert not proof.exists()
    keras_mp.load_model(files["model.keras"], safe_mode=False)
    assert proof.exists()


def test_training_of_a_hostile_file_runs_no_code(files, tmp_path):
    """What the processes of `keras-mp train` do with the model."""
    proof = tmp_path / "it ran"
    hostile(False, proof).save(files["model.keras"])
    proof.unlink()
    job = tasks.Job("custom", 1, 2, model=str(files["model.keras"]), loss="mse")
    with pytest.raises(UserError, match=r"model\.keras"):
        custom.build(job, "float32", None)
    assert not proof.exists()


def test_a_policy_in_a_file_runs_no_code(files, content, tmp_path):
    """A saved policy tells the policies of quantized layers: only policies are made."""
    proof = tmp_path / "it ran"
    made = hostile(False, proof)
    code = keras.saving.serialize_keras_object(made.layers[0])
    proof.unlink()
    with zipfile.ZipFile(files["model.keras"]) as archive:
        config = json.loads(archive.read("config.json"))
    policy = {
        "module": "keras_mp",
        "class_name": "Policy",
        "registered_name": "keras_mp>Policy",
        "config": {
            "name": "mixed_float16",
            "float32": [],
            "quantized": {"dense": code},
        },
    }
    config["config"]["layers"][-1]["config"]["dtype"] = policy
    forged = damage.edited(content, config_json=json.dumps(config))
    files["model.keras"].write_bytes(forged)
    with pytest.raises((TypeError, ValueError)):
        keras_mp.load_model(files["model.keras"])
    assert not proof.exists()


@pytest.mark.parametrize(
    "rule",
    [
        {"module": "os", "class_name": "system"},
        {"module": "keras", "class_name": "no_such_name"},
        {"module": "keras", "class_name": "saving"},
    ],
)
def test_a_rule_in_a_file_that_is_no_layer_of_keras(rule):
    with pytest.raises((ValueError, TypeError), match="layer"):
        keras_mp.Policy.from_config({"name": "mixed_float16", "float32": [rule]})
