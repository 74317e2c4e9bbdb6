"""What the numbers of one tensor are like: counts, extremes, exponents.

A tensor is measured on the device, in a graph or not, as two small vectors. All shares
follow from the histogram of exponents, for formats that were not in use too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_mp.recording.formats import Format

# Bins of a histogram: the biased exponents of float32, then what has none.
_BIAS = 127
_ZERO, _NAN, _INF, _BINS = 256, 257, 258, 259


class Measures(NamedTuple):
    """What the numbers of a tensor, or of several, are like.

    Attributes:
        size: How many numbers were counted.
        zeros: How many of them are 0.
        nans: How many are NaN.
        infs: How many are infinite.
        smallest: The smallest magnitude above 0; NaN if there is none.
        largest: The largest finite magnitude; 0 if there is none.
        exponents: A dict of an exponent ``n`` to how many numbers have a magnitude
            from ``2**n`` to below ``2**(n + 1)``.
    """

    size: int = 0
    zeros: int = 0
    nans: int = 0
    infs: int = 0
    smallest: float = math.nan
    largest: float = 0.0
    exponents: dict[int, int] = {}  # noqa: RUF012  never changed

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or NaN."""
        return not self.nans and not self.infs

    @property
    def nonzero(self) -> int:
        """How many numbers are finite and not 0."""
        return sum(self.exponents.values())

    def beyond(self, form: Format, scale: float = 1.0) -> float:
        """Return the share of finite numbers, 0 apart, that are too large for ``form``.

        By their exponents: from the first power of two above the largest number.

        Args:
            form: The format.
            scale: What the numbers are multiplied by first, a power of two.
        """
        first = form.first_beyond - round(math.log2(scale))
        return self._share(n for n in self.exponents if n >= first)

    def below(self, form: Format, scale: float = 1.0) -> float:
        """Return the share of finite numbers, 0 apart, that ``form`` rounds to 0.

        Args:
            form: The format.
            scale: As of `beyond`.
        """
        last = form.last_below - round(math.log2(scale))
        return self._share(n for n in self.exponents if n <= last)

    def _share(self, exponents: Iterable[int]) -> float:
        return sum(self.exponents[n] for n in exponents) / max(self.nonzero, 1)


def merged(several: Iterable[Measures]) -> Measures:
    """Return the measures of the numbers of ``several`` together."""
    several = [each for each in several if each.size]
    exponents: dict[int, int] = {}
    for each in several:
        for exponent, count in each.exponents.items():
            exponents[exponent] = exponents.get(exponent, 0) + count
    smallest = [each.smallest for each in several if each.smallest == each.smallest]
    return Measures(
        sum(each.size for each in several),
        sum(each.zeros for each in several),
        sum(each.nans for each in several),
        sum(each.infs for each in several),
        min(smallest, default=math.nan),
        max((each.largest for each in several), default=0.0),
        dict(sorted(exponents.items())),
    )


def measured(tensor: Any) -> tuple[Any, Any]:
    """Return what `read` makes `Measures` of. Does not synchronise with the device.

    Args:
        tensor: A float tensor of any shape, in a graph or not. Numbers of float64 are
            read as float32.

    Returns:
        An int32 vector with the count of each bin, and the float32 vector (smallest
        magnitude above 0, largest finite magnitude, whether all numbers are finite).
    """
    return _measured(_flat(tensor, tf.float32))


@tf.function(input_signature=[tf.TensorSpec([None], tf.float32)], autograph=False)
def _measured(values: Any) -> tuple[Any, Any]:
    # One function for all: without a graph, its operations would be called one by one.
    values = tf.abs(values)
    return _histogram(values), _extremes(values)


def sampled(tensor: Any, numbers: int) -> tuple[Any, Any]:
    """Return what `measured` does, of some numbers of a tensor.

    Only the largest magnitude, and whether all numbers are finite, are those of all
    numbers.

    Args:
        tensor: As for `measured`.
        numbers: How many numbers are counted at most, at equal distances.
    """
    values = _flat(tensor, tensor.dtype)
    distance = tf.maximum(1, -(-tf.size(values) // numbers))
    some = tf.abs(tf.cast(values[::distance], tf.float32))
    smallest, largest, _ = tf.unstack(_extremes(some))
    top = _largest(values)
    finite = tf.math.is_finite(top)
    largest = tf.where(finite, top, largest)
    extremes = tf.stack([smallest, largest, tf.cast(finite, tf.float32)])
    return _histogram(some), extremes


def _extremes(values: Any) -> Any:
    """Return the smallest and largest of magnitudes, and whether all are finite."""
    finite = tf.math.is_finite(values)
    some = tf.constant([0.0])  # for a tensor without numbers
    largest = tf.reduce_max(tf.concat([tf.where(finite, values, 0.0), some], 0))
    positive = tf.where(values > 0, values, math.inf)  # NaN is not above 0
    smallest = tf.reduce_min(tf.concat([positive, some + math.inf], 0))
    return tf.stack([smallest, largest, tf.cast(tf.reduce_all(finite), tf.float32)])


def _largest(values: Any) -> Any:
    """Return the largest magnitude in float32; inf or NaN if one number is.

    As whole numbers, which takes a few milliseconds less for a million of them: bits
    of floats without their sign are in the order of the floats, inf and NaN last.
    """
    whole = tf.int16 if values.dtype in (tf.float16, tf.bfloat16) else tf.int32
    if whole == tf.int32:
        values = tf.cast(values, tf.float32)
    bits = tf.bitwise.bitwise_and(tf.bitcast(values, whole), whole.max)
    top = tf.maximum(tf.reduce_max(bits), 0)  # of a tensor without numbers
    return tf.cast(tf.bitcast(top, values.dtype), tf.float32)


def _flat(tensor: Any, dtype: Any) -> Any:
    return tf.cast(tf.reshape(tensor, [-1]), dtype)


def _histogram(values: Any) -> Any:
    """Return how many of the magnitudes ``values`` are in each bin."""
    bins = tf.bitwise.right_shift(tf.bitcast(values, tf.int32), 23)
    # TensorFlow's kernels on CPU treat subnormal numbers as 0.
    bins = tf.where(values == 0, _ZERO, bins)
    special = tf.where(tf.math.is_nan(values), _NAN, _INF)
    bins = tf.where(tf.math.is_finite(values), bins, special)
    return tf.math.bincount(bins, minlength=_BINS, maxlength=_BINS)


def read(measured: tuple[Any, Any]) -> Measures:
    """Return the `Measures` of what `measured` returned. Synchronises."""
    counts, (smallest, largest, finite) = map(np.asarray, measured)
    nans, infs = int(counts[_NAN]), int(counts[_INF])
    if not finite and not nans + infs:
        nans = 1  # among the numbers that were not counted
    return Measures(
        int(counts.sum()),
        int(counts[_ZERO]),
        nans,
        infs,
        float(smallest) if math.isfinite(smallest) else math.nan,
        float(largest),
        {
            int(bin_) - _BIAS: int(counts[bin_])
            for bin_ in np.flatnonzero(counts[:_ZERO])
        },
    )


class Error(NamedTuple):
    """How far a tensor is from what it would be in float32.

    Attributes:
        relative: The norm of the difference over the norm of the float32 numbers.
        cosine: The cosine of the angle between both; 1 if they point the same way.
        vanished: The share of the float32 numbers above and below 0 that are 0 here.
        ulps: ``relative`` in units in the last place of a format.
    """

    relative: float
    cosine: float
    vanished: float
    ulps: float


def compared(tensor: Any, exact: Any) -> Any:
    """Return what `read_error` makes an `Error` of. Does not synchronise.

    Args:
        tensor: A float tensor.
        exact: Its numbers in float32, a tensor of the same shape.

    Returns:
        A float64 vector: three squared norms, of ``tensor``, of ``exact`` and of their
        difference; their product; the numbers that vanished, and that are not 0.
    """
    return _compared(_flat(tensor, tf.float32), _flat(exact, tf.float32))


@tf.function(input_signature=[tf.TensorSpec([None], tf.float32)] * 2, autograph=False)
def _compared(tensor: Any, exact: Any) -> Any:
    one, other = tf.cast(tensor, tf.float64), tf.cast(exact, tf.float64)
    there = other != 0
    vanished = tf.logical_and(there, one == 0)
    return tf.stack(
        [
            tf.reduce_sum(one * one),
            tf.reduce_sum(other * other),
            tf.reduce_sum((one - other) ** 2),
            tf.reduce_sum(one * other),
            *(tf.reduce_sum(tf.cast(each, tf.float64)) for each in (vanished, there)),
        ]
    )


def read_error(compared: Any, form: Format) -> Error:
    """Return the `Error` of what `compared` returned, or of a sum of such vectors.

    Where numbers are not finite, it is NaN.

    Args:
        compared: The vector.
        form: The format of `Error.ulps`.
    """
    own, exact, difference, product, vanished, there = np.asarray(compared).tolist()
    if not difference:
        return Error(0.0, 1.0, 0.0, 0.0)
    relative = math.sqrt(difference / exact) if exact else math.inf
    norms = math.sqrt(own * exact)
    cosine = product / norms if norms else 0.0
    return Error(relative, cosine, vanished / max(there, 1.0), relative / form.epsilon)
