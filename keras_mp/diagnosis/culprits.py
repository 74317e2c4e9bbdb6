"""The culprits of a batch: each cause with its numbers and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_mp import policies, private, tables
from keras_mp.diagnosis import causes, masks
from keras_mp.diagnosis.causes import Cause
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.recording import FORMATS, Batch, LayerCall, Measures, Record, Tensor
from keras_mp.recording.taps import located

_NO_PRECISION_HELPS = "No precision helps"


class Case(NamedTuple):
    """What is known of a batch.

    Attributes:
        model: The model.
        batch: The `Batch`.
        record: Its `Record` in the present precision, at the scale.
        exact: Its `Record` in float32, at a scale of 1; None for a model in float32.
        safe_scale: The largest loss scale at which no gradient overflows, or None.
    """

    model: keras.Model
    batch: Batch
    record: Record
    exact: Record | None
    safe_scale: float | None


def find(case: Case) -> list[Culprit]:
    """Return the culprits of a batch, first cause first.

    Where the forward pass or the loss went wrong, gradients only follow.
    """
    culprits = [*_of_data(case), *_of_weights(case)]
    culprits += _of_forward(case, causes.not_finite, causes.not_finite)
    if culprits:
        return culprits
    culprits = list(_of_loss(case)) or _of_backward(case, causes.not_finite)
    if culprits:
        return culprits
    return (
        _of_forward(case, causes.has_vanished, causes.has_vanished)
        or _of_forward(case, causes.is_wrong, causes.is_not_right)
        or _of_backward(case, causes.has_vanished)
    )


# Data and weights.


def _of_data(case: Case) -> Iterator[Culprit]:
    x, y, sample_weight = case.batch
    named = list(private.graphs.named_inputs(case.model, x))
    named += [("y", leaf) for leaf in keras.tree.flatten(y)]
    named += [("sample_weight", leaf) for leaf in keras.tree.flatten(sample_weight)]
    for name, leaf in named:
        values = np.asarray(leaf) if hasattr(leaf, "__array__") else np.zeros(0)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype)):
            yield from _of_array(name, values.astype("float64"))


def _of_array(name: str, values: np.ndarray) -> Iterator[Culprit]:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)) if bad.ndim else []
    has_nan = bool(np.isnan(values).any())
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    where = f"rows {shown} hold" if len(rows) > 1 else f"row {shown} holds"
    yield Culprit(
        name,
        "input",
        "input",
        "nan" if has_nan else "overflow",
        f"{where if len(rows) else 'it is'} {'NaN' if has_nan else 'inf'}",
        f"{_NO_PRECISION_HELPS}: remove these rows, or replace what is missing in them",
    )


def _of_weights(case: Case) -> Iterator[Culprit]:
    for weight in case.record.weights:
        if not weight.value.finite:
            measures = weight.value.measures
            yield Culprit(
                weight.layer,
                weight.name,
                "weights",
                "nan" if measures.nans else "overflow",
                f"{_share(measures)} in the variable '{weight.path}'",
                "Load weights from before it, and look for what wrote it: a learning "
                "rate that is too large, or steps without loss scaling "
                "(keras_mp.compile skips those that are not finite)",
            )


# Layers.


def _of_forward(
    case: Case, is_bad: Callable[[Tensor], bool], may_follow: Callable[[Tensor], bool]
) -> list[Culprit]:
    found = causes.forward(case.record, is_bad, may_follow)
    return _once_for_a_layer(_forward_culprit(case, cause) for cause in found)


def _once_for_a_layer(culprits: Iterable[Culprit]) -> list[Culprit]:
    """Return the first of the culprits of each layer, which may be called often."""
    first: dict[Any, Culprit] = {}
    for culprit in culprits:
        first.setdefault((culprit.layer, culprit.tensor), culprit)
    return list(first.values())


def _forward_culprit(case: Case, cause: Cause) -> Culprit:
    call = case.record.calls[cause.call]
    tensor = _first_wrong(call.inputs if cause.between else call.outputs)
    kind = _kind(case, cause, tensor)
    if cause.between:
        source = _before_cast(case.record, cause.call, tensor)
        if source is None:  # no cast explains it, so code between the layers does
            return _of_code(case, cause, kind)
        evidence, fix = _of_cast(call, source)
    else:
        evidence = f"{_shown(tensor)}; {_what_it_used(case, call)}"
        evidence, fix = _mask_in_code(case, call.path, tensor) or (
            evidence,
            _float32_or(case, cause, call.path),
        )
    return Culprit(call.path, cause.tensor, "forward", kind, evidence, fix)


def _what_it_used(case: Case, call: LayerCall) -> str:
    form = FORMATS.get(call.dtype)
    for weight in case.record.weights:
        largest = weight.value.measures.largest
        if weight.layer == call.path and form and largest > form.largest:
            return f"its {weight.name} holds {largest:.3g}"
    return f"it read at most {_largest(call.inputs):.3g}"


def _of_code(case: Case, cause: Cause, kind: str) -> Culprit:
    calls = case.record.calls
    call = calls[cause.call]
    around = calls[call.outer]  # pyright: ignore
    tensor = _first_wrong(call.inputs)
    evidence = f"its own code, before it calls '{call.path}': {_shown(tensor)}"
    evidence, fix = _mask_in_code(case, around.path, tensor) or (
        evidence,
        _float32_or(case, cause, around.path),
    )
    return Culprit(around.path, "output", "forward", kind, evidence, fix)


def _of_cast(call: LayerCall, source: Tensor) -> tuple[str, str]:
    measures, form = source.measures, FORMATS[call.inputs[0].dtype]
    what = (
        f"it reads {measures.largest:g} in {form.name}, which ends at "
        f"{form.largest:,.0f}"
    )
    if measures.smallest == measures.largest:
        return (
            f"{what}: a mask value, which becomes infinite",
            f"Mask with a number inside of the range, such as {-form.largest / 2:g}, "
            "or with a bool mask and keras.ops.where",
        )
    return (
        what,
        f"Scale these numbers, or keep the layer in float32: {_rule(call.path)}",
    )


def _before_cast(record: Record, index: int, tensor: Tensor) -> Tensor | None:
    """Return an earlier tensor that a cast made ``tensor`` of; None if none fits."""
    form = FORMATS.get(tensor.dtype)
    earlier = record.calls[:index]
    tensors = [each for call in earlier for each in (*call.inputs, *call.outputs)]
    fitting = (
        each
        for each in reversed(tensors)
        if each.shape == tensor.shape and each.finite and each.dtype != tensor.dtype
    )
    return next(
        (each for each in fitting if form and each.measures.largest > form.largest),
        None,
    )


def _mask_in_code(case: Case, path: str, tensor: Tensor) -> tuple[str, str] | None:
    """Return evidence and fix if the code of a layer holds too large a number."""
    form = FORMATS.get(tensor.dtype)
    if form is None or tensor.finite:
        return None
    layer = next(each for each, place in located(case.model) if place == path)
    number = masks.number_in_code(layer, form.largest)
    if number is None:
        return None
    return (
        f"its code holds {-abs(number):g}, a mask value that is infinite in "
        f"{form.name}, which ends at {form.largest:,.0f}: {_share(tensor.measures)}",
        f"Mask with a number inside of the range, such as {-form.largest / 2:g}, or "
        "with a bool mask and keras.ops.where",
    )


# Losses.


def _of_loss(case: Case) -> Iterator[Culprit]:
    record = case.record
    for name, measures in record.losses.items():
        if not measures.finite:
            kind = "nan" if measures.nans else "overflow"
            fix = (
                "Compute the loss from logits, or clip what it takes the logarithm or "
                "the exponential of; a loss of keras_mp.compile is float32 already"
            )
            yield Culprit(name, "output", "loss", kind, _share(measures), fix)
    if all(measures.finite for measures in record.losses.values()):
        if not math.isfinite(record.loss):
            evidence = f"the loss is {record.loss}, the mean or sum of finite numbers"
            fix = "Scale the targets, or weight the loss with a smaller number"
            yield Culprit(case.model.name, "output", "loss", "overflow", evidence, fix)
        elif not math.isfinite(np.float32(record.loss) * np.float32(record.scale)):
            scale = tables.scale(record.scale)
            evidence = f"the loss of {record.loss:.3g} times the scale {scale}"
            fix = f"Lower the loss scale to {tables.scale(case.safe_scale or 1.0)}"
            yield Culprit(case.model.name, "output", "loss", "overflow", evidence, fix)


# Gradients.


def _of_backward(case: Case, is_bad: Callable[[Tensor], bool]) -> list[Culprit]:
    found = causes.backward(case.record, is_bad)
    return _once_for_a_layer(_backward_culprit(case, cause, is_bad) for cause in found)


def _backward_culprit(
    case: Case, cause: Cause, is_bad: Callable[[Tensor], bool]
) -> Culprit:
    call = case.record.calls[cause.call]
    gradients = call.output_gradients if cause.between else call.input_gradients
    if cause.tensor != "gradient":
        gradients = tuple(
            weight.gradient
            for weight in case.record.weights
            if weight.layer == call.path and weight.name == cause.tensor
        )
    tensor = next(each for each in gradients if each is not None and is_bad(each))
    at_scale = f"at the loss scale {tables.scale(case.record.scale)}"
    if tensor.finite:
        kind = "underflow"
        share = tensor.error.vanished  # pyright: ignore[reportOptionalMemberAccess]
        evidence = (
            f"{share:.0%} of the numbers are 0 in {tensor.dtype} that are not in "
            f"float32, {at_scale}"
        )
    else:
        kind = _kind(case, cause, tensor)
        evidence = f"{_share(tensor.measures)} {at_scale}"
    fix = _scale_fix(case, kind) or _float32_or(case, cause, call.path)
    return Culprit(call.path, cause.tensor, "backward", kind, evidence, fix)


def _scale_fix(case: Case, kind: str) -> str | None:
    safe, scale = case.safe_scale, case.record.scale
    if safe is None:
        return None
    if kind == "overflow" and safe < scale:
        return (
            f"Lower the loss scale to {tables.scale(safe)}; dynamic loss scaling does "
            "so by itself"
        )
    if kind == "underflow" and safe > scale:
        return f"Raise the loss scale, up to {tables.scale(safe)}"
    return None


# Words.


def _kind(case: Case, cause: Cause, tensor: Tensor) -> str:
    if tensor.finite:
        vanished = tensor.error is not None and tensor.error.vanished >= 0.5
        return "underflow" if vanished else "rounding"
    exact = _in_float32(case, cause)
    if exact is None:
        return (
            "nan" if tensor.measures.nans and not tensor.measures.infs else "overflow"
        )
    return "overflow" if all(each.finite for each in exact) else "nan"


def _in_float32(case: Case, cause: Cause) -> list[Tensor] | None:
    """Return what the call returned and passed back in float32; None if unknown."""
    own, exact = case.record.calls, case.exact and case.exact.calls
    if exact is None or [each.path for each in own] != [each.path for each in exact]:
        return None
    call = exact[cause.call]
    tensors = (*call.inputs, *call.outputs)
    if cause.tensor not in ("input", "output"):
        tensors += (*call.input_gradients, *call.output_gradients)
    return [each for each in tensors if each is not None]


def _float32_or(case: Case, cause: Cause, path: str) -> str:
    exact = _in_float32(case, cause)
    if exact is not None and not all(each.finite for each in exact):
        return (
            f"{_NO_PRECISION_HELPS}: float32 is not finite here either. Look at the "
            "layer's weights and inputs, and at the learning rate"
        )
    if not policies.is_low_anywhere(case.model):
        return "Look at the layer's weights and inputs, and at the learning rate"
    return f"Keep the layer in float32: {_rule(path)}"


def _rule(path: str) -> str:
    return f"keras_mp.Policy(..., float32=['{rule_for(path)}'])"


def rule_for(path: str) -> str:
    """Return the shortest rule for the layer at ``path``: without the model's name."""
    return path.split("/", 1)[-1]


def _first_wrong(tensors: tuple[Tensor, ...]) -> Tensor:
    wrong = (each for each in tensors if not each.finite or causes.is_wrong(each))
    return next(wrong)


def _shown(tensor: Tensor) -> str:
    if not tensor.finite:
        return f"{_share(tensor.measures)} in {tensor.dtype}"
    error: Any = tensor.error
    if error.vanished >= 0.5:
        return f"{error.vanished:.0%} of its numbers are 0 in {tensor.dtype} only"
    return f"{error.relative:.0%} away from float32 in {tensor.dtype}"


def _share(measures: Measures) -> str:
    what = " and ".join(
        name
        for name, count in (("inf", measures.infs), ("NaN", measures.nans))
        if count
    )
    return f"{measures.infs + measures.nans:,} of {measures.size:,} numbers are {what}"


def _largest(tensors: tuple[Tensor, ...]) -> float:
    return max((each.measures.largest for each in tensors), default=0.0)
