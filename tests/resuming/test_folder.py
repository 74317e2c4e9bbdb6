"""A folder of backups gives the newest one that is whole."""

import warnings

import numpy as np
import pytest
from support import damage

from keras_mp import archives
from keras_mp.resuming import packing
from keras_mp.resuming.backup import Backup
from keras_mp.resuming.batches import Place
from keras_mp.resuming.folder import Folder


def backup(number):
    place = Place(number, 0, 0, {}, None, None, None)
    return Backup({"model/0": [np.full(9, number, "float32")]}, place, {}, [])


def number_in(taken):
    """Return the number of a `backup`, which all of it has to tell."""
    [copy] = taken.state["model/0"]
    assert copy.tolist() == [taken.place.epoch] * 9
    return taken.place.epoch


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "backups", keep=2)
    for serial in (1, 2, 5):
        made.write(serial, backup(serial))
    return made


def names(folder):
    return sorted(each.name for each in folder.path.iterdir())


def test_the_last_ones_are_kept(folder):
    assert names(folder) == ["backup-00000002.npz", "backup-00000005.npz"]


def test_newest(folder):
    serial, taken = folder.newest()
    assert serial == number_in(taken) == 5
    assert folder.newest(up_to=4)[0] == 2
    assert folder.newest(up_to=1) is None
    assert Folder(folder.path / "none", keep=1).newest() is None


def test_remove_after(folder):
    (folder.path / ".backup-00000006.npz.tmp").write_bytes(b"half")
    (folder.path / "notes.txt").write_text("mine")
    folder.remove_after(2)
    assert names(folder) == ["backup-00000002.npz", "notes.txt"]
    folder.remove()
    assert names(folder) == ["notes.txt"]


def test_remove(folder):
    folder.remove()
    assert not folder.path.exists()


@pytest.mark.parametrize(
    "share", [0.05, pytest.param(1.0, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_damaged_backup_is_passed_over(folder, share, check_faults):
    path = folder.path / "backup-00000005.npz"
    content = path.read_bytes()

    def attempt(damaged):
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            serial, taken = folder.newest()
        same = number_in(taken) == serial
        return None if same else f"backup {serial} is another"

    cases = [*damage.cut(content, every=8), *damage.flipped(content, share)]
    check_faults(
        "Newest backups cut at each 8th byte, or with a bit flipped",
        damage.outcome(cases, attempt),
    )


@pytest.mark.parametrize(
    "foreign",
    [({}, {"a": np.zeros(3)}), packing.packed({"model/0": [np.zeros(3)]})],
    ids=["another program's", "no backup"],
)
def test_a_file_of_another_kind_is_passed_over(folder, foreign):
    archives.write(folder.path / "backup-00000009.npz", *foreign)
    with pytest.warns(UserWarning, match="00000009.npz .* kind.* the backup before"):
        serial, taken = folder.newest()
    assert serial == number_in(taken) == 5


@pytest.mark.parametrize("name", ["backup-7.npz", "backup-²³.npz", "backup-٧.npz"])
def test_a_file_named_otherwise_is_left_alone(folder, name):
    (folder.path / name).write_bytes(b"of another program")
    assert folder.newest()[0] == 5
    folder.remove()
    assert names(folder) == [name]


def test_a_warning_names_the_file_and_what_is_done(folder):
    (folder.path / "backup-00000005.npz").write_bytes(b"")
    with pytest.warns(
        UserWarning, match="00000005.npz cannot be used .* the backup before"
    ):
        folder.newest()


def test_a_failed_write_leaves_what_was_there(folder, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(archives.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write(6, backup(6))
    assert names(folder) == ["backup-00000002.npz", "backup-00000005.npz"]
