"""A warning of layers whose numbers come near the end of their dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from keras_mp.dtypes import LOW_PRECISION
from keras_mp.recording import FORMATS, Reading

#: Bits by which the headroom has to have fallen. Less is what batches differ by.
_FALL = 4.0

_MESSAGE = (
    "headroom of {what} fell from {most:.0f} to {now:.0f} bits in {steps} steps: the "
    "largest number is {largest:.3g}, and {dtype} ends at {end:.3g}. {advice}"
)
_OUTPUT = (
    "If it grows on, it becomes inf, and the loss NaN. Lower the learning rate, "
    "normalize what the layer reads, or train under mixed_bfloat16, which has the "
    "range of float32. A float32 rule has to match the layer and those that read its "
    "numbers."
)
_GRADIENT = (
    "If it grows on, steps are skipped. {scale}Lower the learning rate, or clip "
    "gradients."
)
_STATIC = "Lower the loss scale, which is a static one, or take a dynamic one. "


class Trends:
    """What a warning of each layer depends on, over the steps of a run.

    A layer is warned of once: of low precision, with fewer bits left than ``least`` and
    4 fewer than in an earlier step. Gradients that a smaller loss scale would help are
    judged as at a scale of 1, if the scale is not static: a dynamic scale grows until
    they overflow, and falls again.

    Args:
        least: How many bits of headroom are enough.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._most: dict[str, tuple[float, int]] = {}
        self._warned: set[str] = set()

    def warnings(
        self, step: int, layers: dict[str, Reading], scale: float, static: bool
    ) -> Iterator[str]:
        """Yield messages to warn of after a step.

        Args:
            step: Its number.
            layers: Its readings.
            scale: Its loss scale.
            static: Whether the loss scale never changes.
        """
        for path, reading in _sound(layers.items(), "output"):
            most = self._fallen(path, step, reading.dtype, reading.headroom)
            if most:
                largest = reading.output.largest
                now = reading.headroom
                yield _message(path, reading, largest, most, now, step, _OUTPUT)
        spare = 0.0 if static else math.log2(scale)
        for path, reading in _sound(reversed(layers.items()), "gradient"):
            now = reading.gradient_headroom + spare
            what = f"the gradient of {path}"
            most = self._fallen(what, step, reading.dtype, now)
            if most:
                advice = _GRADIENT.format(scale=_STATIC if static else "")
                largest = reading.gradient.largest / 2**spare
                yield _message(what, reading, largest, most, now, step, advice)

    def _fallen(
        self, what: str, step: int, dtype: str, now: float
    ) -> tuple[float, int] | None:
        """Return the most headroom so far and its step, if a warning is due."""
        if dtype not in LOW_PRECISION or math.isinf(now):
            return None
        most = self._most.setdefault(what, (now, step))
        if now >= most[0]:
            self._most[what] = (now, step)
        if now >= self._least or most[0] - now < _FALL or what in self._warned:
            return None
        self._warned.add(what)
        return most


def _sound(
    layers: Iterable[tuple[str, Reading]], attribute: str
) -> Iterator[tuple[str, Reading]]:
    """Yield ``layers`` until one has inf or NaN, which those after it only pass on."""
    for path, reading in layers:
        if not getattr(reading, attribute).finite:
            return
        yield path, reading


def _message(
    what: str,
    reading: Reading,
    largest: float,
    most: tuple[float, int],
    now: float,
    step: int,
    advice: str,
) -> str:
    bits, since = most
    return _MESSAGE.format(
        what=what,
        most=bits,
        now=now,
        steps=step - since,
        largest=largest,
        dtype=reading.dtype,
        end=FORMATS[reading.dtype].largest,
        advice=advice,
    )
