"""A file is there whole or not at all, holds no pickle, and says what is wrong."""

import json
import os
import signal
import sys
import zipfile

import numpy as np
import pytest
from support.flights import example
from support.processes import Forked

from keras_mp import archives, flight, saved_files


def test_round_trip(tmp_path):
    path = tmp_path / "flight.npz"
    given = example()
    flight.write(given, path)
    found = flight.read(path)
    assert found.batch.y[0].tolist() == [0, 0] and found.batch.sample_weight is None
    assert found.batch.x["x"].tolist() == given.batch.x["x"].tolist()
    assert found.scales.tolist() == [8, 16] and found.scale == 16
    assert [seed.tolist() for seed in found.seeds] == [[3, 4]]
    plain = {"batch": None, "scales": None, "seeds": None}
    assert found._replace(**plain) == given._replace(**plain)
    assert os.listdir(tmp_path) == ["flight.npz"]


def test_without_a_batch(tmp_path):
    path = tmp_path / "flight.npz"
    flight.write(example(batch=None, rows=None, left_out="it was large"), path)
    assert flight.read(path).batch is None
    assert flight.read(path).left_out == "it was large"


def test_no_member_is_pickled(tmp_path):
    path = tmp_path / "flight.npz"
    flight.write(example(), path)
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fiub" for name in arrays.files)


def test_text():
    assert example().text().splitlines() == [
        "recorded: 2026-11-28 17:00:00, step 1204 on replica 1 of model 'net'",
        "the output of block_3/attention overflowed (forward) at the loss scale 16",
        "loss scales of the last 2 steps: from 8 to 16",
        "of its batch, rows 4 to 5 are in the file",
    ]


# What ends a process while it writes.


def test_a_process_that_is_killed_leaves_no_file(tmp_path):
    path = tmp_path / "flight.npz"
    process = Forked(__file__, str(path))
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [saved_files.temporary_of(path).name]
    process.close()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(archives.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        flight.write(example(), tmp_path / "flight.npz")
    assert os.listdir(tmp_path) == []


# Files that cannot be read.


def written(tmp_path):
    path = tmp_path / "flight.npz"
    flight.write(example(), path)
    return path


def cut_short(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def one_byte_changed(tmp_path):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"block_3")] ^= 1
    path.write_bytes(content)
    return path


def other_arrays(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones(3))
    return path


def pickled(tmp_path):
    path = tmp_path / "pickled.npz"
    np.savez(path, about=np.array([{}], object))
    return path


def text(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("nothing")
    return path


def one_array(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.ones(3))
    return path


def leaf_missing(tmp_path):
    path, other = written(tmp_path), tmp_path / "other.npz"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            if name != "leaf_0.npy":
                new.writestr(name, old.read(name))
    return other


def about(**changes):
    def make(tmp_path):
        path = written(tmp_path)
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        fields = json.loads(bytes(kept["about"])) | changes
        kept["about"] = np.frombuffer(json.dumps(fields).encode(), "uint8")
        np.savez(path, **kept)
        return path

    return make


@pytest.mark.parametrize(
    "make",
    [
        cut_short,
        one_byte_changed,
        other_arrays,
        pickled,
        text,
        one_array,
        leaf_missing,
        about(format="of another program"),
        about(culprits=[["too", "few"]]),
        about(batch={"leaf": 7, "dtype": "float32"}),
    ],
)
def test_damaged_and_foreign_files(tmp_path, make):
    path = make(tmp_path)
    match = "needs a file that .*FlightRecorder has written. Got a file that is damaged"
    with pytest.raises(ValueError, match=match):
        flight.read(path)


def test_a_newer_file(tmp_path):
    with pytest.raises(ValueError, match="newer version. Update keras_mp"):
        flight.read(about(version=2)(tmp_path))


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="Got no such file. Check the path"):
        flight.read(tmp_path / "none.npz")


if __name__ == "__main__":
    import pathlib

    archives.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    flight.write(example(), pathlib.Path(sys.argv[1]))
