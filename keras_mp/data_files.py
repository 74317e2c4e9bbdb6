"""An ``.npz`` file that a command was given: read without pickle, errors explained."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_mp.saved_files import DAMAGE
from keras_mp.terminal import UserError, explain

SAVE_DATA = 'write it with np.savez("data.npz", x=x, y=y)'
SAVE_NAMED = (
    'write it with np.savez("data.npz", **arrays), a dict of the arrays by these names'
)


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
    return _arrays(path, called, lambda names: _wanted(called, names, together))


def read_batch(
    path: str, called: str, parts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the arrays of a batch, one for each part or one for each of its names.

    Floats become float32. The part ``x`` with the names ``a`` and ``b`` is the array
    ``x`` of the file, or a dict of the arrays ``x_a`` and ``x_b`` by ``a`` and ``b``.
    Other arrays are not read.

    Args:
        path: The file.
        called: What the user typed, for messages.
        parts: ``"x"``, ``"y"`` and ``"sample_weight"``, which may be missing in the
            file; for each the names of its arrays, as far as there are any.

    Raises:
        UserError: As for `read`; or an array has a name that is not known.
    """

    def wanted(found: list[str]) -> list[str]:
        return [
            array
            for part, names in parts.items()
            for array in _wanted_of(called, part, names, found)
        ]

    arrays = _arrays(path, called, wanted)
    first = next(iter(arrays))
    for name in arrays:
        check_same_samples(called, first, name, arrays)
    batch: dict[str, Any] = {}
    for part, names in parts.items():
        if part in arrays:
            batch[part] = arrays[part]
        elif any(f"{part}_{name}" in arrays for name in names):
            batch[part] = {name: arrays[f"{part}_{name}"] for name in names}
    return batch


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


def _arrays(
    path: str, called: str, wanted: Callable[[list[str]], list[str]]
) -> dict[str, np.ndarray]:
    """Return the arrays that ``wanted`` names, given the names in the file; checked."""
    if not os.path.isfile(path):
        raise explain(called, "an .npz file", "no such file", "check the path")
    if not zipfile.is_zipfile(path):
        raise explain(
            called, "arrays in numpy's .npz format", "another format", SAVE_DATA
        )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = wanted(archive.files)
            arrays = {name: _array(called, name, archive) for name in names}
    except DAMAGE as error:
        raise explain(
            called,
            "an .npz file that is whole",
            f"a damaged file ({type(error).__name__}: {' '.join(str(error).split())})",
            f"take another copy of it, or {SAVE_DATA}",
        ) from None
    for name, array in arrays.items():
        _check(called, name, array)
    return {name: _narrowed(array) for name, array in arrays.items()}


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


def _wanted_of(
    called: str, part: str, names: Sequence[str], found: list[str]
) -> list[str]:
    """Return the names of the arrays of a part; raise UserError if they do not fit."""
    named = [f"{part}_{name}" for name in names]
    given = [each for each in found if each.startswith(f"{part}_")]
    if part in found and not set(named) & set(given):
        return [part]
    if part not in found and set(named) == set(given) and named:
        return named
    if part not in found and not given and part == "sample_weight":
        return []
    raise explain(
        called,
        f"the array {part}" + (f", or instead {', '.join(named)}" if named else ""),
        f"{', '.join(found) or 'no array'}: {_fault(part, named, given, found)}",
        SAVE_NAMED if named else SAVE_DATA,
    )


def _fault(part: str, named: list[str], given: list[str], found: list[str]) -> str:
    """Return what is wrong with the arrays of a part."""
    if part in found:
        both = [each for each in given if each in named]
        return f"{part} and {', '.join(both)} are not for one batch"
    if not named or not given:
        return f"{part} missing"
    faults = [f"{each} missing" for each in named if each not in given]
    faults += [f"{each} unknown" for each in given if each not in named]
    return ", ".join(faults)


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
