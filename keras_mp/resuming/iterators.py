"""The place of a tf.data iterator in its data: shuffled elements, and what is next."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import numpy as np

_PREFIX = "iterator"


def saved(iterator: Any) -> dict[str, np.ndarray] | None:
    """Return the state of an iterator, as the bytes of files by name.

    None if it cannot be saved: on several replicas, if Python code or random operations
    make the elements, or if they are too large.
    """
    import tensorflow as tf

    if not isinstance(iterator, tf.data.Iterator):
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            _checkpoint(iterator).write(f"{folder}/{_PREFIX}")
        except tf.errors.OpError:
            return None
        return {
            file.name: np.frombuffer(file.read_bytes(), "uint8")
            for file in pathlib.Path(folder).iterdir()
        }


def restore(iterator: Any, files: dict[str, np.ndarray]) -> None:
    """Have an iterator go on where the one was that `saved` was given."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            pathlib.Path(folder, name).write_bytes(content.tobytes())
        _checkpoint(iterator).read(f"{folder}/{_PREFIX}").assert_consumed()


def _checkpoint(iterator: Any) -> Any:
    import tensorflow as tf

    return tf.train.Checkpoint(iterator=iterator)
