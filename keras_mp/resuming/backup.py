"""One backup: all state of a model in ``fit``, its place in the data, its History."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_mp.archives import Archive, Damaged
from keras_mp.resuming import packing, values
from keras_mp.resuming.batches import Place
from keras_mp.resuming.values import Values

_ITERATORS = ("iterator", "start")


class Backup(NamedTuple):
    """What `fit` needs to go on.

    Attributes:
        state: The values of all variables.
        place: The place in the data.
        history: The ``history`` of Keras's `History`.
        epochs: Its ``epoch``.
    """

    state: Values
    place: Place
    history: dict[str, list[Any]]
    epochs: list[int]


def taken(model: keras.Model, place: Place) -> Backup:
    """Return a backup of ``model``, which is in ``fit``. Synchronises with the device.

    Args:
        model: The model.
        place: The place in its data.
    """
    history: Any = model.history
    return Backup(
        values.read(values.variables_of(model)),
        place,
        {name: [_plain(each) for each in of] for name, of in history.history.items()},
        list(history.epoch),
    )


def packed(backup: Backup) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what `keras_mp.archives.write` takes."""
    place = backup.place
    about, arrays = packing.packed(
        backup.state,
        place=place._replace(**dict.fromkeys(_ITERATORS))._asdict(),
        history=backup.history,
        epochs=backup.epochs,
    )
    for field in _ITERATORS:
        files = getattr(place, field) or {}
        arrays |= {f"{field}:{name}": content for name, content in files.items()}
    return about, arrays


def unpacked(archive: Archive) -> Backup:
    """Return the backup that was `packed`.

    Raises:
        Damaged: The archive is another program's, no backup, or of a newer version.
    """
    about, arrays = archive
    state = packing.unpacked(archive)
    if "place" not in about:
        raise Damaged("of another kind")
    saved = {field: _of(field, arrays) or None for field in _ITERATORS}
    place = Place(**{**about["place"], **saved})
    return Backup(state, place, about["history"], about["epochs"])


def _of(field: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = f"{field}:"
    return {
        name.removeprefix(prefix): content
        for name, content in arrays.items()
        if name.startswith(prefix)
    }


def _plain(value: Any) -> Any:
    """Return a value of a log as what JSON holds, without a loss."""
    return np.asarray(value).tolist()
