"""Random numbers of Python and of NumPy, which data sets may shuffle by."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def state() -> dict[str, Any]:
    """Return the states of the global generators, for JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def set_state(states: dict[str, Any]) -> None:
    """Set the global generators to what `state` has returned."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, "uint32"), *rest))
