"""A batch whose step was skipped is run again, for the reason."""

from __future__ import annotations

from typing import NamedTuple

import keras

from keras_mp import policies, private
from keras_mp.diagnosis import culprits, scales
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.recording import Batch, Recorder


class Rerun(NamedTuple):
    """What a batch does when it is run again.

    Attributes:
        culprits: A tuple of `Culprit`; empty if the batch is clean.
        safe_scale: The largest power of two at which no gradient overflows; None where
            there is none, as after an overflow in the forward pass.
    """

    culprits: tuple[Culprit, ...]
    safe_scale: float | None


def rerun(model: keras.Model, batch: Batch, scale: float) -> Rerun:
    """Run a batch again, forward and backward, and look for what is not finite.

    In the present precision; in float32 too if that may be at fault. Layer by layer,
    and nothing in the model changes, as for `keras_mp.diagnose`. Synchronises with the
    device.

    Args:
        model: A compiled model.
        batch: One replica's share of the batch, as tensors.
        scale: The loss scale that was in force.

    Raises:
        ValueError: The model has no ``call``.
    """
    if not private.layers.has_call(model):
        raise ValueError(f"class {type(model).__name__} has no `call`")
    recorder = Recorder(model, batch)
    record = recorder.record(scale)
    safe = scales.largest_safe_scale(recorder.run(), record)
    if safe is not None and safe >= scale:
        return Rerun((), safe)
    case = culprits.Case(model, batch, record, None, safe)
    found = culprits.find(case)
    in_a_layer = any(each.phase in ("forward", "backward") for each in found)
    if in_a_layer and policies.is_low_anywhere(model):
        exact = recorder.record_in_float32()
        found = culprits.find(case._replace(exact=exact))
    return Rerun(tuple(found), safe)
