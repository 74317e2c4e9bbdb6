"""The part of a batch that fits a file, and still overflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_mp.flight import structure
from keras_mp.recording import Batch


def fitting(
    batch: Batch, max_bytes: int, overflows: Callable[[Batch], bool]
) -> tuple[Batch | None, tuple[int, int] | None]:
    """Return what of a batch is no larger than a file may be.

    A batch that is too large is halved, and the half kept that overflows by itself,
    until it fits.

    Args:
        batch: The `Batch`.
        max_bytes: How many bytes it may have.
        overflows: Runs a batch, and returns whether it overflows.

    Returns:
        The batch, or some of its rows, or None; and the numbers of the first row and
        of the one after the last, or None if these are all.

    Raises:
        TypeError: The batch holds what a file cannot keep.
    """
    if _bytes_of(batch) <= max_bytes:
        return batch, None
    start, stop = 0, len(_leaves(batch)[0])
    part: Batch = batch
    while _bytes_of(part) > max_bytes:
        middle = (start + stop) // 2
        halves = [(start, middle), (middle, stop)] if start < middle else []
        rows = next((r for r in halves if overflows(_rows(batch, *r))), None)
        if rows is None:
            return None, None
        start, stop = rows
        part = _rows(batch, *rows)
    return part, (start, stop)


def _leaves(batch: Batch) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(tuple(batch)) if leaf is not None]


def _bytes_of(batch: Batch) -> int:
    _, arrays = structure.packed(tuple(batch))
    return sum(array.nbytes for array in arrays)


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    def cut(leaf: Any) -> Any:
        return leaf if leaf is None else leaf[start:stop]

    return Batch(*(keras.tree.map_structure(cut, part) for part in batch))
