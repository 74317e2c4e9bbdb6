"""`diagnose`: which layer of a model went wrong on a batch, and what to do."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import policies, tables
from keras_mp.diagnosis import culprits, given, scales, search
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.diagnosis.report import Diagnosis, layers_of, underflow
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.policies import Policy
from keras_mp.recording import Recorder

#: The largest power of two that float32 holds, and the largest scale of any rule.
_LARGEST = 2.0**127


def diagnose(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    scale: float | None = None,
    loss: Callable | None = None,
) -> Diagnosis:
    """Say which layer of ``model`` went wrong on a batch, where, and what to do.

    The batch is run forward and backward as ``fit`` would, layer by layer and not in a
    graph, in the present precision and in float32, with the same random numbers. A
    layer is a culprit if what it read is right and what it returned is not, forward or
    backward; what only follows from it is none. Nothing in the model changes: no
    weight, no statistic, no seed, no metric.

    Args:
        model: A built Keras model with a ``call``: Sequential, Functional, nested or
            subclassed; compiled, unless ``loss`` is given.
        x: One batch of inputs, as for ``model.train_on_batch``.
        y: Its targets.
        sample_weight: Its weights.
        scale: The loss scale, a number above 0. Defaults to the present scale of the
            model's optimizer, or 1 if it has none.
        loss: ``loss(y, y_pred)``, a function or a `keras.losses.Loss`, instead of what
            the model was compiled with: for a model that computes its loss in a
            ``train_step`` of its own.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError: ``model`` is not a Keras model.
        ValueError: ``model`` has no ``call`` or no loss, or ``scale`` is not above 0,
            or more than float32 holds.

    Synchronises with the device. It takes as long as some ten steps without a graph,
    and longer where rules are tried.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    >>> model.layers[0].set_weights([np.full((4, 8), 2e4), np.zeros(8)])
    >>> diagnosis = keras_mp.diagnose(model, x, y)
    >>> culprit = diagnosis.culprits[0]
    >>> culprit.phase, culprit.kind, culprit.evidence
    ('forward', 'overflow', '64 of 64 numbers are inf in float16; it read at most 1')
    """
    given.check_model("keras_mp.diagnose(model, ...)", model, loss)
    scale = _checked_scale(scale)
    batch = given.as_batch("keras_mp.diagnose", x, y, sample_weight)
    if scale is None:
        scale = present_scale(model)
    recorder = given.recorder_of("keras_mp.diagnose", model, batch, loss)
    case = case_of(recorder, scale)
    found = culprits.find(case)
    policy, verdict = _remedy(recorder, found, case.safe_scale, scale)
    return Diagnosis(
        tuple(found),
        layers_of(case.record),
        scale,
        case.safe_scale,
        underflow(case.record, case.exact),
        policy,
        verdict,
        case.record.loss,
    )


def case_of(recorder: Recorder, scale: float) -> culprits.Case:
    """Return what is known of a batch at a loss scale. Synchronises."""
    low = policies.is_low_anywhere(recorder.model)
    record = recorder.record(scale, against_float32=low)
    exact = recorder.record_in_float32() if low else None
    safe = scales.largest_safe_scale(recorder.run(), exact or record)
    return culprits.Case(recorder.model, recorder.batch, record, exact, safe)


def present_scale(model: keras.Model) -> float:
    """Return the loss scale of the optimizer of ``model``; 1 if it has none."""
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, LossScaleOptimizer):
        return float(optimizer.stats()["scale"])
    return 1.0


def _checked_scale(scale: Any) -> float | None:
    if scale is None:
        return None
    number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
    if not (number and 0 < scale <= _LARGEST):  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"keras_mp.diagnose(scale={scale!r}) needs a finite loss scale above 0 "
            "that float32 holds, such as 2.0**15."
        )
    return float(scale)


def _remedy(
    recorder: Recorder, found: list[Culprit], safe: float | None, scale: float
) -> tuple[Policy | None, str]:
    """Return the policy under which the batch is clean, and the verdict."""
    if not found:
        return None, "Clean: no layer overflows, or loses most of what float32 keeps."
    first = found[0]
    if first.phase in _REASONS:
        return None, f"No rule helps: {_REASONS[first.phase]}."
    vanishes = (first.phase, first.kind) == ("backward", "underflow")

    def judge(present: Recorder, safe: float | None) -> list[Culprit]:
        exact, room = present.record_in_float32(), safe or scale
        record = present.record(
            room if vanishes else min(scale, room), against_float32=True
        )
        case = culprits.Case(present.model, present.batch, record, exact, room)
        return culprits.find(case)

    def judge_anew() -> list[Culprit]:
        present = recorder.under_other_policies()
        exact = present.record_in_float32()
        return judge(present, scales.largest_safe_scale(present.run(), exact))

    remaining = judge(recorder, safe)
    policy = search.fewest_rules(recorder.model, remaining, judge_anew)
    if policy is None:
        return None, "No rule helps: the learning rate or the weights went too far."
    if not remaining:
        limit = "" if vanishes else " or less"
        fitting = tables.scale(safe or 1.0)
        return policy, f"No rule is needed at a loss scale of {fitting}{limit}."
    return policy, f"Clean with {policy!r}."


_REASONS = {
    "input": "the data is not finite",
    "weights": "weights are not finite already",
    "loss": "the loss overflows in float32",
}
