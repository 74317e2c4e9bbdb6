"""Where the time of an optimizer's step goes, and the least that it can take.

Each stage is timed on its own, on gradients and variables of a model's shapes. The
floor is the memory that a stage has to read and write, over the rate at which this
machine adds one tensor to another of the model's size.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from benchmarks import timing
from benchmarks.steps import OPTIMIZERS
from benchmarks.workloads import WORKLOADS
from keras_mp import fused, numerics
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.processes import alone
from keras_mp.scaling import Verdict
from keras_mp.tables import markdown, number

# How often each number of the model's weights is read or written.
PASSES = {
    "check": {"SGD": 1, "Adam": 1},
    "update": {"SGD": 3, "Adam": 7},
    "step": {"SGD": 4, "Adam": 8},
}

STAGES = {
    "check, Keras": None,
    "check": "check",
    "unscaling, Keras": None,
    "update, Keras": None,
    "update with unscaling": "update",
    "rule": None,
    "step, Keras": None,
    "step": "step",
}


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time the stages for the models' weights, with SGD and Adam.

    Returns:
        Dicts of ``model``, ``optimizer``, ``bytes`` (of the gradients), ``bandwidth``
        in bytes per second and ``seconds``: the median of each stage.
    """
    results = []
    for model in models:
        for optimizer in OPTIMIZERS:
            show(f"  stages: {WORKLOADS[model].title}, {optimizer}")
            results.append(alone(_time, model, optimizer, rounds))
    return results


def table(results: list[dict]) -> str:
    """Milliseconds of each stage, and its floor."""
    titles = [f"{each['model']}, {each['optimizer']}" for each in results]
    rows = []
    for stage, floor in STAGES.items():
        cells = [number(timing.milliseconds(each, stage)) for each in results]
        rows.append([stage, *cells])
        if floor:
            cells = [number(floor_seconds(each, floor) * 1000) for each in results]
            rows.append([f"{stage}, floor", *cells])
    return markdown(["ms per step", *titles], rows)


def floor_seconds(result: dict, stage: str) -> float:
    """The time that a stage's reads and writes take at the measured rate."""
    passes = PASSES[stage][result["optimizer"]]
    return passes * result["bytes"] / result["bandwidth"]


def _time(model, optimizer, rounds):
    weights = WORKLOADS[model].build().trainable_variables
    gradients = [tf.random.normal(weight.shape) for weight in weights]
    size = sum(gradient.shape.num_elements() for gradient in gradients) * 4
    candidates = _stages(OPTIMIZERS[optimizer], weights, gradients)
    timed = timing.paired_rounds(candidates | {"sum": _sum(size)}, rounds)
    seconds = timing.summary([timed])["seconds"]
    return {
        "model": model,
        "optimizer": optimizer,
        "bytes": size,
        "bandwidth": 3 * size / seconds.pop("sum"),
        "seconds": seconds,
    }


def _sum(size):
    """Two reads and a write of ``size`` bytes."""
    target, other = tf.Variable(tf.zeros(size // 4)), tf.ones(size // 4)
    return tf.function(lambda: target.assign_add(other))


def _stages(inner, weights, gradients):
    bare, ours = inner(), LossScaleOptimizer(inner())
    keras_own = keras.optimizers.LossScaleOptimizer(inner())
    one_pass, scale = inner(), keras.Variable(1.0, trainable=False)
    for optimizer in (bare, ours, keras_own, one_pass):
        optimizer.build(weights)
    ours.scale_loss(0.0)
    rule = ours.scaling
    state = [tf.Variable(value) for value in rule.init()]

    def update():
        with fused.Plan(one_pass, scale, gradients, weights).in_effect():
            one_pass.apply(gradients)

    def advance():
        new = rule.update(type(rule.init())(*state), Verdict(tf.constant(True)))
        for variable, value in zip(state, new, strict=True):
            variable.assign(tf.cast(value, variable.dtype))

    stages = {
        "check, Keras": lambda: keras_own.check_finite(gradients),
        "check": lambda: numerics.all_finite(gradients),
        "unscaling, Keras": lambda: [gradient / scale for gradient in gradients],
        "update, Keras": lambda: bare.apply(gradients),
        "update with unscaling": update,
        "rule": advance,
        "step, Keras": lambda: keras_own.apply(gradients),
        "step": lambda: ours.apply(gradients),
    }
    # On a CPU a function returns when its work is done.
    return {name: tf.function(stage) for name, stage in stages.items()}
