"""One file of arrays and a text: whole or not there, checked, never pickled.

What damages it is in ``tests/flight/test_file.py`` and ``tests/test_damaged_files.py``,
and what kills its writer in ``tests/resuming/test_kills.py``.
"""

import ml_dtypes
import numpy as np
import pytest

from keras_mp import archives

ARRAYS = {
    "a/0": np.arange(6, dtype="float32").reshape(2, 3),
    "bfloat16": np.array([1.5, np.nan], ml_dtypes.bfloat16),
    "float8": np.array(3.0, ml_dtypes.float8_e4m3fn),
    "bytes": np.frombuffer(b"abc", "uint8"),
    "empty": np.zeros((0, 4), "int64"),
    "flags": np.array([True, False]),
}


def check(found):
    assert found.about == {"name": "net", "step": 3, "loss": [0.1, None]}
    assert list(found.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()


ABOUT = {"name": "net", "step": 3, "loss": [0.1, None]}


def test_a_file(tmp_path):
    path = tmp_path / "archive.npz"
    archives.write(path, {}, {})
    archives.write(path, ABOUT, ARRAYS)  # in place of another
    check(archives.read(path))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_bytes():
    check(archives.from_bytes(archives.to_bytes(ABOUT, ARRAYS)))


def test_objects_are_refused(tmp_path):
    path = tmp_path / "archive.npz"
    archives.write(path, ABOUT, ARRAYS)
    with pytest.raises(TypeError, match="would have to be pickled"):
        archives.write(path, {}, {"a": np.array([object()])})
    check(archives.read(path))


@pytest.mark.parametrize("content", [b"", b"text", archives.to_bytes({}, {})[:-1]])
def test_damaged(content, tmp_path):
    (tmp_path / "archive.npz").write_bytes(content)
    for read in (
        archives.from_bytes,
        lambda _: archives.read(tmp_path / "archive.npz"),
    ):
        with pytest.raises(archives.Damaged):
            read(content)


def test_every_changed_byte_of_an_array_is_found():
    content = bytearray(archives.to_bytes(ABOUT, {"a": np.arange(9.0)}))
    start = content.index(np.arange(9.0).tobytes())
    for place in range(start, start + 72, 5):
        changed = content.copy()
        changed[place] ^= 4
        with pytest.raises(archives.Damaged):
            archives.from_bytes(bytes(changed))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz"):
        archives.read(tmp_path / "none.npz")
