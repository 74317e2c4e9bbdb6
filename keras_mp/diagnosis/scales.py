"""The largest loss scale at which no gradient of a batch overflows."""

from __future__ import annotations

import math
from collections.abc import Iterator

from keras_mp import kinds, numerics
from keras_mp.recording import FLOAT32, FORMATS, Record
from keras_mp.recording.step import Pass

#: The exponents of the scales that are tried; float32 itself ends there.
_LOWEST, _HIGHEST = -24, 126


def largest_safe_scale(run: Pass, record: Record) -> float | None:
    """Return the largest power of two at which all gradients of a batch are finite.

    Found by trying: it, and not the next one, passes. Synchronises with the device.

    Args:
        run: The forward pass of the batch.
        record: Its record, in any precision, whose gradients tell where to begin. One
            in float32 tells it best.

    Returns:
        The scale; None if none is small enough, as after an overflow in the forward
        pass.
    """
    if not math.isfinite(record.loss):
        return None
    guess = _first_guess(run, record)
    tries = iter((guess, guess + 1, guess - 1))
    largest, too_large = _LOWEST - 1, _HIGHEST + 1
    while too_large - largest > 1:
        exponent = next(tries, (largest + too_large) // 2)
        if largest < exponent < too_large:
            if _all_finite(run, exponent):
                largest = exponent
            else:
                too_large = exponent
    return 2.0**largest if largest >= _LOWEST else None


def _first_guess(run: Pass, record: Record) -> int:
    rooms = list(_rooms({call.path: call.dtype for call in run.calls}, record))
    guess = math.floor(min(rooms, default=_HIGHEST) + math.log2(record.scale))
    return max(_LOWEST, min(_HIGHEST, guess))


def _rooms(dtypes: dict[str, str], record: Record) -> Iterator[float]:
    """Yield how many bits each gradient is below the end of its layer's dtype."""
    for call in record.calls:
        form = FORMATS.get(dtypes.get(call.path, ""), FLOAT32)
        for gradient in (*call.input_gradients, *call.output_gradients):
            if gradient is not None and gradient.measures.largest:
                yield math.log2(form.largest / gradient.measures.largest)


def _all_finite(run: Pass, exponent: int) -> bool:
    gradients = run.gradients(2.0**exponent)
    flat = [*gradients.weights]
    for of_call in (*gradients.inputs, *gradients.outputs):
        flat += of_call
    return bool(numerics.every_finite(kinds.dense_parts(flat)))
