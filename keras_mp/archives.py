"""One file of arrays and a text in JSON: whole or not there, checked, never pickled.

NumPy's ``.npz`` format, which keeps a CRC-32 of each array.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  With it NumPy knows the names of its dtypes.
import numpy as np

from keras_mp.saved_files import DAMAGE, written_whole

_TEXT, _DTYPES = "about", "dtypes"


class Archive(NamedTuple):
    """What one file holds.

    Attributes:
        about: What JSON can hold, by name.
        arrays: NumPy arrays, by name.
    """

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Damaged(ValueError):
    """The file is cut short, was changed, or is of another kind."""


def write(path: pathlib.Path, about: Mapping[str, Any], arrays: Mapping) -> None:
    """Write a file, which is there whole or not at all, whenever the process is killed.

    A temporary file beside it is written, synchronised with the disk and renamed.

    Args:
        path: The file. One that is there is replaced.
        about: What JSON can hold, by name.
        arrays: NumPy arrays of numbers or bytes, by name; also of the dtypes of
            ``ml_dtypes``, such as bfloat16.

    Raises:
        OSError: It cannot be written. What was there is there still.
        TypeError: An array holds objects.
    """
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        _save(file, about, arrays)


def read(path: str | os.PathLike[str]) -> Archive:
    """Return what a file holds, each array checked against its CRC-32.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It cannot be read, or is not what `write` has written.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No file {os.fspath(path)!r}.")
    try:
        with open(path, "rb") as file:
            return _load(file)
    except DAMAGE as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


def to_bytes(about: Mapping[str, Any], arrays: Mapping) -> bytes:
    """Return what `write` would write."""
    file = io.BytesIO()
    _save(file, about, arrays)
    return file.getvalue()


def from_bytes(content: bytes) -> Archive:
    """Return what `to_bytes` was given.

    Raises:
        Damaged: They are not what `to_bytes` has returned.
    """
    try:
        return _load(io.BytesIO(content))
    except DAMAGE as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


def _save(file: Any, about: Mapping[str, Any], arrays: Mapping) -> None:
    if any(array.dtype.hasobject for array in arrays.values()):
        raise TypeError("An array of objects would have to be pickled.")
    foreign = {
        name: array.dtype.name
        for name, array in arrays.items()
        if array.dtype.isbuiltin != 1 and array.dtype.kind != "S"
    }
    stored = {
        name: array.view(f"u{array.dtype.itemsize}") if name in foreign else array
        for name, array in arrays.items()
    }
    text = json.dumps({**about, _DTYPES: foreign}).encode()
    stored[_TEXT] = np.frombuffer(text, "u1")
    save: Any = np.savez  # whose keywords are names, and an option of newer versions
    save(file, **stored)


def _load(file: Any) -> Archive:
    if not zipfile.is_zipfile(file):
        raise ValueError("not an archive")
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        about = json.loads(bytes(stored[_TEXT]))
        dtypes = about.pop(_DTYPES, {})
        arrays = {name: stored[name] for name in stored.files if name != _TEXT}
    return Archive(
        about,
        {
            name: array.view(dtypes[name]) if name in dtypes else array
            for name, array in arrays.items()
        },
    )
