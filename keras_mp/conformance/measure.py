"""Runs a case in float32 and in 16 bits, forward and backward, and compares."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from keras_mp.conformance import cases as cases_module
from keras_mp.conformance.cases import Case, Given, Subject
from keras_mp.conformance.modes import MODES

POLICIES = ("mixed_float16", "mixed_bfloat16")

_FINFO = {
    "float16": np.finfo(np.float16),
    "bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16),
    "float32": np.finfo(np.float32),
    "float64": np.finfo(np.float64),
}


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


@dataclasses.dataclass
class _Outcome:
    """What one run gave, as float64: outputs with their dtypes, then gradients."""

    outputs: list[np.ndarray]
    dtypes: list[str]
    gradients: list[np.ndarray | None]
    start: _Start


@dataclasses.dataclass(frozen=True)
class _Start:
    """What all runs of a comparison share.

    Attributes:
        values: Of the variables; None for what they start with, rounded.
        scale: Of the gradients of the outputs, as loss scaling would choose it.
    """

    values: list[np.ndarray] | None = None
    scale: float = 1.0


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

    >>> case = next(case for case in all_cases() if case.name == "UnitNormalization")
    >>> (result,) = measure(case, "small", "mixed_float16", ["keras"])
    >>> result.forward.nonfinite > 0
    True
    """
    dtype = policy.removeprefix("mixed_")
    given = _rounded(case, scenario, dtype)
    try:
        reference = _reference(case, scenario, given, dtype)
    except Exception as error:
        raise RuntimeError(
            f"The case {case.title!r} of keras.{case.kind} fails in its scenario "
            f"{scenario!r} in {case.reference} too, so nothing can be compared. It "
            f"got {type(error).__name__}: {error}. Mend the case, or exclude the "
            "object in keras_mp.conformance.discover with a reason."
        ) from error
    results = []
    for mode in modes:
        place = case.kind, case.title, scenario, policy, mode
        try:
            outcome = _run(case, given, MODES[mode], policy, reference.start)
            errors = _compare(case, outcome, reference, dtype)
        except Exception as error:  # whatever a layer raises is what is reported
            text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            results.append(Result(*place, Error(), Error(), text))
        else:
            results.append(Result(*place, *errors))
    return results


def measure_all(
    cases: Iterable[Case],
    policies: Iterable[str] = POLICIES,
    modes: Iterable[str] = tuple(MODES),
    show: Callable[[str], None] = lambda line: None,
) -> Iterator[Result]:
    """Yield the results of all scenarios of the cases; ``show`` says what runs."""
    for case in cases:
        show(f"keras.{case.kind} {case.title}")
        for scenario in case.scenarios:
            for policy in policies:
                yield from measure(case, scenario, policy, modes)


def _rounded(case, scenario, dtype):
    """Return the arguments, rounded to the compute dtype where they are to be."""
    given = case.scenarios[scenario](np.random.default_rng(0))
    if scenario in cases_module.UNROUNDED:
        return given
    args = [
        arg if place in case.fixed else keras.tree.map_structure(_round(dtype), arg)
        for place, arg in enumerate(given.args)
    ]
    return Given(*args, **given.kwargs)


def _round(dtype):
    def rounded(leaf):
        if not _is_float_array(leaf):
            return leaf
        return leaf.astype("float32").astype(_FINFO[dtype].dtype).astype("float32")

    return rounded


def _is_float_array(leaf):
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"


def _reference(case, scenario, given, dtype):
    """Run the reference, and choose the start of all runs by what it gives.

    Weights are halved until 16 bits can hold the outputs, where inputs are large or
    many: otherwise a product is beyond them whatever computes it, and nothing is said
    about the layer. The gradients are scaled until 16 bits can hold them: in training
    that is what loss scaling is for.
    """
    limit = float(_FINFO[dtype].max) / 2
    stressed = scenario in ("large", "long")
    start = _Start()
    for _ in range(64):
        outcome = _run(case, given, MODES["keras"], case.reference, start, dtype)
        values, scale = outcome.start.values, outcome.start.scale
        if stressed and _largest(outcome.outputs) > limit and _matrices(values):
            start = _Start([v / 2 if _is_matrix(v) else v for v in values], scale)
        elif _largest(outcome.gradients) > limit:
            start = _Start(values, scale / 4)
        else:
            break
    return outcome


def _matrices(values):
    return any(map(_is_matrix, values))


def _is_matrix(value):
    return value.ndim > 1 and value.dtype.kind == "f"


def _largest(arrays):
    return max(
        (
            float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
            for array in arrays
            if array is not None
        ),
        default=0.0,
    )


def _run(case, given, mode, policy, start, rounding=None):
    """Build under ``policy`` and run once, forward and backward.

    Args:
        rounding: The dtype to round trainable variables to, if they are to start with
            what the layer gives them.
    """
    keras.utils.set_random_seed(0)
    with mode.scope(policy):
        subject = case.build(mode)
        compute = keras.dtype_policies.get(policy).compute_dtype
        args = _tensors(case, given, compute)
        variables = _variables(subject, args, given.kwargs)
        if start.values is None:
            start = _Start(_first_values(variables, rounding), start.scale)
        _assign(variables, start.values)
        return _forward_and_backward(case, subject, args, given.kwargs, start)


def _tensors(case, given, dtype):
    """Return the arguments as tensors: floats in float32, or as of a layer before."""

    def tensor(leaf, wanted):
        if _is_float_array(leaf):
            return keras.ops.convert_to_tensor(leaf, wanted)
        return keras.ops.convert_to_tensor(leaf)

    low = dtype if case.low_inputs or dtype == "float64" else "float32"
    return [
        keras.tree.map_structure(
            lambda leaf, place=place: tensor(
                leaf, "float32" if place in case.fixed else low
            ),
            arg,
        )
        for place, arg in enumerate(given.args)
    ]


def _variables(subject: Subject, args, kwargs):
    if subject.owner is None:
        return []
    subject.call(*args, **kwargs)  # Layers make their variables in their first call.
    return subject.owner.variables


def _first_values(variables, dtype):
    values = [keras.ops.convert_to_numpy(variable.value) for variable in variables]
    return [
        _round(dtype)(value) if variable.trainable else value
        for variable, value in zip(variables, values)
    ]


def _assign(variables, values):
    if len(variables) != len(values):
        raise RuntimeError(
            f"{len(values)} variables in float32, and {len(variables)} in 16 bits"
        )
    for variable, value in zip(variables, values):
        variable.assign(value)


def _forward_and_backward(case, subject, args, kwargs, start):
    sources = [
        leaf
        for place, arg in enumerate(args)
        if place not in case.fixed
        for leaf in keras.tree.flatten(arg)
        if tf.is_tensor(leaf) and leaf.dtype.is_floating
    ]
    if subject.owner is not None:
        sources += [v.value for v in subject.owner.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = keras.tree.flatten(subject.call(*args, **kwargs))
        outputs = [tf.convert_to_tensor(output) for output in outputs]
        seeds = [output for output in outputs if output.dtype.is_floating]
    gradients = [None] * len(sources)
    if case.differentiable and seeds:
        cotangents = _cotangents(seeds, start.scale)
        gradients = tape.gradient(seeds, sources, output_gradients=cotangents)
    return _Outcome(
        [_array(output) for output in outputs],
        [output.dtype.name for output in outputs],
        [None if g is None else _array(tf.convert_to_tensor(g)) for g in gradients],
        start,
    )


def _cotangents(outputs, scale):
    """Return the same gradients of the outputs in every precision."""
    random = np.random.default_rng(1)
    # bfloat16 has the fewest digits, and float16 holds these exactly.
    exact = _round("bfloat16")
    return [
        tf.cast(
            exact(np.asarray(scale * random.standard_normal(output.shape))),
            output.dtype,
        )
        for output in outputs
    ]


def _array(tensor):
    if tensor.dtype.is_floating:
        return tf.cast(tensor, "float64").numpy()
    return tensor.numpy()


def _compare(case, outcome, reference, dtype):
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
        forward |= _error(got, expected, dtype, name, _rms(expected), case.random)
    return forward, _backward(case, outcome, reference, dtype)


def _backward(case, outcome, reference, dtype):
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
        error |= _error(got, expected, dtype, dtype, size, case.random)
    return error


def _rms(array):
    array = array[np.isfinite(array)].astype("float64")
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def _error(got, expected, compute_dtype, result_dtype, size, random=""):
    """Return the error of one tensor.

    Args:
        compute_dtype: In whose last place the error is counted.
        result_dtype: Decides what can be held.
        size: At which magnitude an error counts if the entry is smaller.
        random: Whether to count only what is not finite.
    """
    if got.shape != expected.shape:
        raise RuntimeError(f"shape {got.shape} where float32 has {expected.shape}")
    info = _FINFO[compute_dtype]
    if result_dtype not in _FINFO:
        # A class or a bucket is right or wrong.
        return Error(ulps=0.0 if (got == expected).all() else 1 / float(info.eps))
    largest = float(_FINFO[result_dtype].max)
    fits = np.abs(expected) <= largest
    beyond = np.isfinite(expected) & ~fits
    bad = fits & ~np.isfinite(got)
    compared = fits & np.isfinite(got)
    ulps = 0.0
    if not random and compared.any():
        expected, got = expected[compared], got[compared]
        size = max(min(size, largest), float(info.smallest_normal))
        unit = float(info.eps) * np.maximum(np.abs(expected), size)
        ulps = float(np.max(np.abs(got - expected) / unit))
    return Error(int(bad.sum()), int(beyond.sum()), ulps)
