"""The ranges of the low-precision float formats, as powers of two."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np


class Format(NamedTuple):
    """A float format.

    Attributes:
        name: Its name as of `numpy.dtype`, such as ``"float8_e4m3fn"``.
        largest: The largest finite number.
        smallest: The smallest number above 0, a subnormal one.
        epsilon: The distance from 1 to the next larger number.
    """

    name: str
    largest: float
    smallest: float
    epsilon: float

    @property
    def first_beyond(self) -> int:
        """The exponent from which all numbers are too large: ``2**n`` and above."""
        return math.floor(math.log2(self.largest)) + 1

    @property
    def last_below(self) -> int:
        """The exponent up to which all numbers become 0: half of the smallest."""
        return math.floor(math.log2(self.smallest)) - 2


def _format(name: str) -> Format:
    info = ml_dtypes.finfo(np.dtype(name))
    smallest = float(info.smallest_subnormal)
    return Format(name, float(info.max), smallest, float(info.eps))


#: The formats that a record is compared with, whether or not the model uses them.
FORMATS = {
    name: _format(name)
    for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
}
FLOAT32 = _format("float32")


def coarsest(dtypes: Iterable[str]) -> Format:
    """Return the format with the fewest digits among ``dtypes``; float32 of none."""
    found = [FORMATS[dtype] for dtype in dtypes if dtype in FORMATS]
    return max(found, key=lambda form: form.epsilon, default=FLOAT32)
