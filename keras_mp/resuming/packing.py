"""Values of variables as the arrays of an archive."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_mp.archives import Archive, Damaged
from keras_mp.resuming.values import Values

_FORMAT, _VERSION = "keras_mp.training_state", 1


def packed(state: Values, **about: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what `keras_mp.archives.write` takes.

    Args:
        state: Values by key.
        **about: What else the file tells, for JSON.
    """
    copies = {key: len(each) for key, each in state.items()}
    arrays = {
        f"{key}/{index}": copy
        for key, each in state.items()
        for index, copy in enumerate(each)
    }
    return {
        **about,
        "format": _FORMAT,
        "version": _VERSION,
        "copies": copies,
    }, arrays


def unpacked(archive: Archive) -> Values:
    """Return the values that were `packed`.

    Raises:
        Damaged: The archive is another program's, or of a newer version.
    """
    about, arrays = archive
    try:
        is_newer = about["version"] > _VERSION
        if about["format"] == _FORMAT and not is_newer:
            return {
                key: [arrays[f"{key}/{index}"] for index in range(number)]
                for key, number in about["copies"].items()
            }
    except (KeyError, TypeError, AttributeError):
        is_newer = False
    if is_newer:
        raise Damaged("written by a newer version of keras_mp, which to install")
    raise Damaged("of another kind")
