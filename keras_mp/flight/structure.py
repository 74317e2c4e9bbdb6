"""A batch as plain arrays, and its structure as what JSON holds. Never pickled."""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes  # noqa: F401  With it NumPy knows the names of its dtypes.
import numpy as np

_STRING = "string"


def packed(structure: Any) -> tuple[Any, list[np.ndarray]]:
    """Return the form of a structure, for JSON, and the arrays of its leaves.

    Args:
        structure: Tensors, numbers and None in dicts, lists and tuples.

    Raises:
        TypeError: A leaf, or the key of a dict, is of another kind.
    """
    arrays: list[np.ndarray] = []

    def form(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, dict):
            return {"dict": [[_checked_key(key), form(part[key])] for key in part]}
        if isinstance(part, list | tuple):
            kind = "list" if isinstance(part, list) else "tuple"
            return {kind: [form(each) for each in part]}
        dtype, array = _plain(part)
        arrays.append(array)
        return {"leaf": len(arrays) - 1, "dtype": dtype}

    return form(structure), arrays


def unpacked(form: Any, arrays: list[np.ndarray]) -> Any:
    """Return the structure of which `packed` returned ``form`` and ``arrays``."""
    if form is None:
        return None
    if "dict" in form:
        return {key: unpacked(each, arrays) for key, each in form["dict"]}
    if "list" in form:
        return [unpacked(each, arrays) for each in form["list"]]
    if "tuple" in form:
        return tuple(unpacked(each, arrays) for each in form["tuple"])
    array = arrays[form["leaf"]]
    if form["dtype"] != _STRING:
        return array.view(form["dtype"])
    strings = [each[:-1] for each in array.reshape(-1).tolist()]
    return np.array(strings, object).reshape(array.shape)


def _checked_key(key: Any) -> Any:
    if not isinstance(key, str | int):
        raise TypeError(f"a dict with a key of type {type(key).__name__}")
    return key


def _plain(leaf: Any) -> tuple[str, np.ndarray]:
    """Return the dtype of a leaf, and an array of a dtype that is NumPy's own."""
    is_array = hasattr(leaf, "__array__") and not isinstance(leaf, keras.Variable)
    if not is_array and not isinstance(leaf, int | float):
        raise TypeError(f"a {type(leaf).__name__}")
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        # With a byte more, because NumPy takes zeros off the end.
        strings = [_bytes(each) + b"." for each in array.reshape(-1)]
        return _STRING, np.array(strings, "S").reshape(array.shape)
    if array.dtype.isbuiltin != 1:
        return array.dtype.name, array.view(f"u{array.dtype.itemsize}")
    return array.dtype.name, array


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
