"""Builds a case under a policy and runs it, forward and backward."""

from __future__ import annotations

import dataclasses
import functools
import math
import random

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from conformance.cases import UNROUNDED, Case, Given, Subject
from conformance.modes import MODES, Mode

REFERENCE = "float32"

FINFO = {
    "float16": np.finfo(np.float16),
    "bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16),
    "float32": np.finfo(np.float32),
    "float64": np.finfo(np.float64),
}


@dataclasses.dataclass
class Outcome:
    """What one run gave, as float64: outputs with their dtypes, then gradients."""

    outputs: list[np.ndarray]
    dtypes: list[str]
    gradients: list[np.ndarray | None]
    start: Start


@dataclasses.dataclass(frozen=True)
class Start:
    """What all runs of a comparison share.

    Attributes:
        values: Of the variables; None for what they start with, rounded.
        scale: Of the gradients of the outputs, as loss scaling would choose it.
    """

    values: list[np.ndarray] | None = None
    scale: float = 1.0


def arguments(case: Case, scenario: str, dtype: str) -> Given:
    """Return the arguments, rounded to the compute dtype where they are to be."""
    given = case.scenarios[scenario](np.random.default_rng(0))
    if scenario in UNROUNDED:
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
        return leaf.astype("float32").astype(FINFO[dtype].dtype).astype("float32")

    return rounded


def _is_float_array(leaf):
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"


def reference(case: Case, scenario: str, given: Given, dtype: str) -> Outcome:
    """Run the reference, and choose the start of all runs by what it gives.

    Weights are halved until 16 bits can hold the outputs, where inputs are large or
    many: otherwise a product is beyond them whatever computes it, and nothing is said
    about the layer. The gradients are scaled into the range of 16 bits, which in
    training is what loss scaling is for.
    """
    limit = float(FINFO[dtype].max) / 2
    stressed = scenario in ("large", "long")
    start = Start()
    while True:
        outcome = run(case, given, MODES["keras"], REFERENCE, start, dtype)
        values = outcome.start.values
        fits = _largest(outcome.outputs) <= limit
        if fits or not (stressed and _matrices(values)):
            break
        start = Start([v / 2 if _is_matrix(v) else v for v in values])
    largest = _largest(outcome.gradients)
    if largest > limit:
        scale = _power_of_two_below(limit / largest)
    elif 0 < largest < 1:
        scale = _power_of_two_below(1 / largest)
    else:
        return outcome
    if all(np.isfinite(g).all() for g in outcome.gradients if g is not None):
        return _scaled(outcome, scale)
    # A gradient that is beyond float32 at one scale may be a number at a smaller one.
    start = Start(values, scale)
    return run(case, given, MODES["keras"], REFERENCE, start, dtype)


def at_half_the_scale(outcome: Outcome) -> Outcome:
    """Return what the reference gives where its gradients are half as large."""
    return _scaled(outcome, 0.5)


def _scaled(outcome, factor):
    """Return the reference at another scale, a power of two: nothing is rounded."""
    return dataclasses.replace(
        outcome,
        gradients=[None if g is None else factor * g for g in outcome.gradients],
        start=dataclasses.replace(outcome.start, scale=factor * outcome.start.scale),
    )


def _power_of_two_below(x):
    # The gradients of the outputs, normally distributed, are to fit as well.
    return min(2.0 ** math.floor(math.log2(x)), 2.0**13)


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


def run(
    case: Case,
    given: Given,
    mode: Mode,
    policy: str,
    start: Start,
    rounding: str | None = None,
) -> Outcome:
    """Build under ``policy`` and run once, forward and backward.

    Args:
        rounding: The dtype to round trainable variables to, if they are to start with
            what the layer gives them.
    """
    with mode.scope(policy):
        compute = keras.dtype_policies.get(policy).compute_dtype
        args = _tensors(case, given, compute)
        # What is random may hold more state than its variables.
        built = {} if case.random else _built(case, mode, policy)
        key = repr(keras.tree.map_structure(_what, (args, given.kwargs)))
        if key not in built:
            built[key] = _build(case, mode, args, given.kwargs)
        subject, variables, values = built[key]
        if start.values is None:
            start = Start(_rounded(variables, values, rounding), start.scale)
        _assign(variables, start.values)
        return _forward_and_backward(case, subject, args, given.kwargs, start)


@functools.lru_cache(maxsize=5)  # a reference, and two modes under two policies
def _built(case, mode, policy):
    """Return what has been built so far by its arguments, to be run with others."""
    return {}


def _what(argument):
    """Return the shape and dtype of a tensor; anything else as it is."""
    if tf.is_tensor(argument) or isinstance(argument, np.ndarray):
        return tuple(argument.shape), str(argument.dtype)
    return argument


def _build(case, mode, args, kwargs):
    """Return a new subject, its variables and what these start with."""
    # Keras's layers take their seeds from here. `keras.utils.set_random_seed` also has
    # TensorFlow forget its kernels, which are then made again for each run.
    random.seed(0)
    subject = case.build(mode)
    variables = _variables(subject, args, kwargs)
    values = [keras.ops.convert_to_numpy(variable.value) for variable in variables]
    return subject, variables, values


def _tensors(case, given, dtype):
    """Return the arguments as tensors: floats in float32, or as of a layer before."""

    def tensor(leaf, wanted):
        if _is_float_array(leaf):
            return keras.ops.convert_to_tensor(leaf, wanted)
        return keras.ops.convert_to_tensor(leaf)

    low = dtype if case.low_inputs else "float32"
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


def _rounded(variables, values, dtype):
    return [
        _round(dtype)(value) if variable.trainable else value
        for variable, value in zip(variables, values, strict=True)
    ]


def _assign(variables, values):
    if len(variables) != len(values):
        raise RuntimeError(
            f"{len(values)} variables in float32, and {len(variables)} in 16 bits"
        )
    for variable, value in zip(variables, values, strict=True):
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
    return Outcome(
        [_array(output) for output in outputs],
        [output.dtype.name for output in outputs],
        [None if g is None else _array(tf.convert_to_tensor(g)) for g in gradients],
        start,
    )


def _cotangents(outputs, scale):
    """Return the same gradients of the outputs in every precision."""
    generator = np.random.default_rng(1)
    # bfloat16 has the fewest digits, and float16 holds these exactly.
    exact = _round("bfloat16")
    return [
        tf.cast(
            exact(np.asarray(scale * generator.standard_normal(output.shape))),
            output.dtype,
        )
        for output in outputs
    ]


def _array(tensor):
    if tensor.dtype.is_floating:
        return tf.cast(tensor, "float64").numpy()
    return tensor.numpy()
