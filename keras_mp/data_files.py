"""An ``.npz`` file that a command was given: read without pickle, errors explained."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_mp.saved_files import DAMAGE
from keras_mp.terminal import UserError, explain

SAVE_DATA = 'write it with np.savez("data.npz", x=x, y=y)'


def read(path: str, called: str, together: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays ``x`` and ``y`` of a file, and others if they are there.

    Floats become float32.

    Args:
        path: The file.
        called: What the user typed, for messages.
        together: Names of further arrays: all of them, or none.

    Raises:
        UserError: The file cannot be read, an array is missing, empty or no numbers, or
            the numbers of samples differ.
    """
    arrays = _arrays(path, called, together)
    for name, array in arrays.items():
        _check(called, name, array)
    return {name: _narrowed(array) for name, array in arrays.items()}


def check_same_samples(called: str, first: str, second: str, arrays: dict) -> None:
    """Raise UserError unless two of the arrays have as many samples."""
    lengths = len(arrays[first]), len(arrays[second])
    if lengths[0] != lengths[1]:
        raise explain(
            called,
            f"as many samples in {first} as in {second}",
            f"{lengths[0]:,} in {first} and {lengths[1]:,} in {second}",
            "save both arrays from the same samples",
        )


def _arrays(path: str, called: str, together: Sequence[str]) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise explain(called, "an .npz file", "no such file", "check the path")
    if not zipfile.is_zipfile(path):
        raise explain(
            called, "arrays in numpy's .npz format", "another format", SAVE_DATA
        )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = _wanted(called, archive.files, together)
            return {name: _array(called, name, archive) for name in wanted}
    except DAMAGE as error:
        raise explain(
            called,
            "an .npz file that is whole",
            f"a damaged file ({type(error).__name__}: {' '.join(str(error).split())})",
            f"take another copy of it, or {SAVE_DATA}",
        ) from None


def _wanted(called: str, names: list[str], together: Sequence[str]) -> list[str]:
    """Return the names of the arrays to read; raise UserError if one is missing."""
    wanted = ["x", "y"]
    if any(name in names for name in together):
        wanted += together
    missing = [name for name in wanted if name not in names]
    if missing:
        both = f", {' and '.join(together)} both or neither"
        raise explain(
            called,
            f"the arrays {', '.join(wanted)}",
            f"{', '.join(names) or 'no array'}: {', '.join(missing)} missing",
            SAVE_DATA + (both if set(missing) & set(together) else ""),
        )
    return wanted


def _array(called: str, name: str, archive: Any) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise _not_numbers(called, name, "object") from None  # it would be unpickled


def _check(called: str, name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf":
        raise _not_numbers(called, name, str(array.dtype))
    if array.ndim == 0 or array.size == 0:
        raise explain(
            called,
            f"at least one sample in {name}, samples along the first axis",
            f"an array of shape {array.shape}",
            SAVE_DATA,
        )


def _not_numbers(called: str, name: str, dtype: str) -> UserError:
    return explain(
        called,
        f"numbers (bool, integer or floating point) in {name}",
        f"dtype {dtype}",
        "make every sample the same shape and convert, e.g. x.astype('float32')",
    )


def _narrowed(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):  # it becomes inf, which is for others to judge
        return array.astype("float32")
