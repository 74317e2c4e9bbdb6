"""Runs a case in float32 and in 16 bits, forward and backward, and compares."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from conformance import run
from conformance.cases import Case
from conformance.modes import MODES

POLICIES = ("mixed_float16", "mixed_bfloat16")

# How often the scale of gradients is halved before they count as not finite.
_HALVINGS = 16


@dataclasses.dataclass(frozen=True)
class Error:
    """How far one direction, forward or backward, lies from the reference.

    Attributes:
        nonfinite: Entries that are inf or NaN where the reference is a number that
            the dtype of the result can hold.
        beyond: Entries whose reference it cannot hold: no 16-bit result is right.
        ulps: The largest error of the others, in units in the last place of the
            compute dtype, at the magnitude of the entry or the root mean square of
            the tensor, whichever is larger.
    """

    nonfinite: int = 0
    beyond: int = 0
    ulps: float = 0.0

    def __or__(self, other: Error) -> Error:
        """The worse of two in each respect."""
        return Error(
            self.nonfinite + other.nonfinite,
            self.beyond + other.beyond,
            max(self.ulps, other.ulps),
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """One case in one scenario under one policy, with Keras alone or with keras_mp."""

    kind: str
    title: str
    scenario: str
    policy: str
    mode: str
    forward: Error
    backward: Error
    error: str | None = None


def measure(
    case: Case, scenario: str, policy: str, modes: Iterable[str] = tuple(MODES)
) -> list[Result]:
    """Compare one case in one scenario under one policy.

    Args:
        case: The case.
        scenario: One of its scenarios.
        policy: ``"mixed_float16"`` or ``"mixed_bfloat16"``.
        modes: Which of `modes.MODES` to compare with the reference.

    Raises:
        RuntimeError: The reference fails, so that the case itself is wrong.

    Example:

    >>> from conformance.every import all_cases
    >>> case = next(case for case in all_cases() if case.name == "UnitNormalization")
    >>> for result in measure(case, "large", "mixed_float16"):
    ...     print(result.mode, result.forward.ulps)
    keras 1024.0
    keras_mp 0.0
    """
    dtype = policy.removeprefix("mixed_")
    given = run.arguments(case, scenario, dtype)
    try:
        reference = run.reference(case, scenario, given, dtype)
    except Exception as error:
        raise RuntimeError(
            f"The case {case.title!r} of keras.{case.kind} fails in its scenario "
            f"{scenario!r} in float32 too, so nothing can be compared. It "
            f"got {_said(error)}. Mend the case, or exclude the "
            "object in conformance.discover with a reason."
        ) from error
    results = []
    for mode in modes:
        place = case.kind, case.title, scenario, policy, mode
        try:
            errors = _errors(case, scenario, given, reference, policy, mode)
        except Exception as error:  # whatever a layer raises is what is reported
            results.append(Result(*place, Error(), Error(), _said(error)))
        else:
            results.append(Result(*place, *errors))
    return results


def _errors(case, scenario, given, reference, policy, mode):
    """Return the errors forward and backward, of gradients scaled as in training.

    Loss scaling halves its scale for as long as a gradient is not finite.
    """
    dtype = policy.removeprefix("mixed_")
    valued = not case.random and scenario not in case.unstable
    for _ in range(_HALVINGS):
        outcome = run.run(case, given, MODES[mode], policy, reference.start)
        errors = _compare(outcome, reference, dtype, valued)
        if not errors[1].nonfinite:
            break
        reference = run.at_half_the_scale(reference)
    return errors


def measure_all(
    cases: Iterable[Case],
    policies: Iterable[str] = POLICIES,
    modes: Iterable[str] = tuple(MODES),
    show: Callable[[str], None] = lambda line: None,
) -> Iterator[Result]:
    """Yield the results of all scenarios of the cases; ``show`` says which kind."""
    kind = None
    for case in cases:
        if case.kind != kind:
            kind = case.kind
            show(f"keras.{kind} ...")
        for scenario in case.scenarios:
            for policy in policies:
                yield from measure(case, scenario, policy, modes)


def _said(error):
    """Return the first line of an error that says something, without colours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
    lines = [line for line in lines if line and "Exception encountered" not in line]
    return f"{type(error).__name__}: {''.join(lines[:1])}"[:200]


def _compare(outcome, reference, dtype, valued):
    """Return the errors forward and backward."""
    if len(outcome.outputs) != len(reference.outputs):
        raise RuntimeError(
            f"{len(reference.outputs)} outputs in float32, and "
            f"{len(outcome.outputs)} in 16 bits"
        )
    forward = Error()
    for got, expected, name in zip(
        outcome.outputs, reference.outputs, outcome.dtypes, strict=True
    ):
        forward |= _error(got, expected, dtype, name, _rms(expected), valued)
    return forward, _backward(outcome, reference, dtype, valued)


def _backward(outcome, reference, dtype, valued):
    """Return the error of the gradients.

    Some gradients are exactly 0, such as of attention's key bias, and of these only
    the noise of rounding is left in any precision. So an error counts at the size of
    the largest gradient of the same shape.
    """
    pairs, sizes = [], collections.defaultdict(float)
    for got, expected in zip(outcome.gradients, reference.gradients, strict=True):
        if got is None and expected is None:
            continue
        zeros = np.zeros_like(expected if got is None else got)
        got, expected = (zeros if g is None else g for g in (got, expected))
        pairs.append((got, expected))
        sizes[expected.shape] = max(sizes[expected.shape], _rms(expected))
    error = Error()
    for got, expected in pairs:
        size = sizes[expected.shape]
        error |= _error(got, expected, dtype, dtype, size, valued)
    return error


def _rms(array):
    array = array[np.isfinite(array)].astype("float64")
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def _error(got, expected, compute_dtype, result_dtype, size, valued):
    """Return the error of one tensor.

    Args:
        compute_dtype: In whose last place the error is counted.
        result_dtype: Decides what can be held.
        size: At which magnitude an error counts if the entry is smaller.
        valued: Whether values can be compared, not only whether they are finite.
    """
    if got.shape != expected.shape:
        raise RuntimeError(f"shape {got.shape} where float32 has {expected.shape}")
    info = run.FINFO[compute_dtype]
    if result_dtype not in run.FINFO:
        # A class or a bucket is right or wrong.
        same = not valued or (got == expected).all()
        return Error(ulps=0.0 if same else 1 / float(info.eps))
    largest = float(run.FINFO[result_dtype].max)
    fits = np.abs(expected) <= largest
    beyond = np.isfinite(expected) & ~fits
    bad = fits & ~np.isfinite(got)
    compared = fits & np.isfinite(got)
    ulps = 0.0
    if valued and compared.any():
        expected, got = expected[compared], got[compared]
        size = max(min(size, largest), float(info.smallest_normal))
        unit = float(info.eps) * np.maximum(np.abs(expected), size)
        ulps = float(np.max(np.abs(got - expected) / unit))
    return Error(int(bad.sum()), int(beyond.sum()), ulps)
