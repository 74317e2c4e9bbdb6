"""What islands and guards cost: layers with them, and as Keras alone has them.

A layer is timed forward and backward, on inputs in the compute dtype, as they come from
a layer before it; a model in whole steps of ``fit``. All else is the same: the policy's
name, the weights, the optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

import keras_mp
from benchmarks import steps, timing
from benchmarks.workloads import SEED, WORKLOADS
from keras_mp import flow, precision_lists
from keras_mp.processes import alone
from keras_mp.tables import markdown, number


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer and what it is fed.

    Attributes:
        build: Returns a new layer, under the present policy.
        shape: Of its input, batch included.
        call: ``call(layer, x)`` returns its output for the input.
    """

    build: Callable[[], keras.layers.Layer]
    shape: tuple[int, ...]
    call: Callable[[keras.layers.Layer, Any], Any] = lambda layer, x: layer(x)


TOKENS = (8, 128, 256)
ROWS = (64, 512)
PIXELS = (8, 56, 56, 64)

ATTENTION = {
    "MultiHeadAttention, 4 heads of 64": Case(
        lambda: layers.MultiHeadAttention(4, 64), TOKENS, lambda layer, x: layer(x, x)
    ),
    "GroupQueryAttention, 4 heads of 64, 2 groups": Case(
        lambda: layers.GroupQueryAttention(64, 4, 2),
        TOKENS,
        lambda layer, x: layer(x, x),
    ),
    "Attention": Case(layers.Attention, TOKENS, lambda layer, x: layer([x, x])),
    "AdditiveAttention": Case(
        layers.AdditiveAttention, (8, 64, 128), lambda layer, x: layer([x, x])
    ),
}

ACTIVATIONS = {
    f"Dense of 1000, {function.__name__}": Case(
        lambda function=function: layers.Dense(1000, activation=function), ROWS
    )
    for function in precision_lists.FLOAT32_FUNCTIONS + precision_lists.INSIDE_FUNCTIONS
}

OTHERS = {
    "Dense of 1000, activity regularizer": Case(
        lambda: layers.Dense(1000, activity_regularizer="l2"), ROWS
    ),
    "SpectralNormalization of Dense of 1000": Case(
        lambda: layers.SpectralNormalization(layers.Dense(1000)),
        ROWS,
        lambda layer, x: layer(x, training=True),
    ),
    "BatchNormalization, training": Case(
        layers.BatchNormalization, PIXELS, lambda layer, x: layer(x, training=True)
    ),
    "Activation, softmax": Case(lambda: layers.Activation("softmax"), (8, 4, 128, 128)),
    "Softmax": Case(layers.Softmax, (8, 4, 128, 128)),
    "UnitNormalization": Case(layers.UnitNormalization, TOKENS),
    "Dot, normalized": Case(
        lambda: layers.Dot(-1, normalize=True), TOKENS, lambda layer, x: layer([x, x])
    ),
    "ELU": Case(layers.ELU, PIXELS),
    "UpSampling2D, bilinear": Case(
        lambda: layers.UpSampling2D(interpolation="bilinear"), (8, 28, 28, 64)
    ),
    "AveragePooling1D": Case(lambda: layers.AveragePooling1D(2), TOKENS),
    "AveragePooling2D": Case(lambda: layers.AveragePooling2D(2), PIXELS),
    "AveragePooling3D": Case(lambda: layers.AveragePooling3D(2), (2, 16, 28, 28, 32)),
    "MaxPooling3D": Case(lambda: layers.MaxPooling3D(2), (2, 16, 28, 28, 32)),
    "GlobalAveragePooling1D": Case(layers.GlobalAveragePooling1D, TOKENS),
    "GlobalAveragePooling2D": Case(layers.GlobalAveragePooling2D, PIXELS),
    "GlobalAveragePooling3D": Case(layers.GlobalAveragePooling3D, (2, 16, 28, 28, 32)),
}

CASES = ATTENTION | ACTIVATIONS | OTHERS


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time every layer, and the models with SGD, with islands and without.

    Returns:
        Dicts of ``kind``, ``"layer"`` or ``"model"``, ``name`` and a `timing.summary`
        of the candidates ``"with"`` islands and ``"without"``.
    """
    names = {"layer": list(CASES), "model": models}
    results = []
    for kind, step in _STEPS.items():
        for name in names[kind]:
            show(f"  islands: {name}")
            timed = alone(_time, step, name, policy, rounds)
            results.append({"kind": kind, "name": name} | timed)
    return results


def table(results: list[dict]) -> str:
    """Milliseconds with and without islands, their ratio and its standard error."""
    head = ["layer or model", "without, ms", "with, ms", "with / without", "±"]
    return markdown(head, map(_row, results))


def _row(result):
    model = result["kind"] == "model"
    title = WORKLOADS[result["name"]].title if model else result["name"]
    return [
        title,
        number(timing.milliseconds(result, "without")),
        number(timing.milliseconds(result, "with")),
        *map(number, result["ratios"]["with / without"]),
    ]


def _time(step, name, policy, rounds):
    policies = {"without": keras.DTypePolicy(policy), "with": policy}
    candidates = {which: step(name, policies[which]) for which in policies}
    seconds = timing.paired_rounds(candidates, rounds)
    return timing.summary([seconds], [("with", "without")])


def layer_step(name: str, policy: keras.DTypePolicy | str) -> Callable[[], Any]:
    """Return a function that runs one of `CASES` forward and backward.

    Args:
        name: The case.
        policy: A policy's name, for keras_mp's islands, or a policy of Keras's.

    Returns:
        A compiled function that returns the output and the gradients of the input and
        of the weights. On a CPU it returns when its work is done.
    """
    case = CASES[name]
    keras.utils.set_random_seed(SEED)
    with keras_mp.policy_scope(policy) as policy:
        layer = case.build()
        x = tf.cast(tf.random.normal(case.shape, seed=SEED), policy.compute_dtype)
        upstream = tf.random.normal(case.call(layer, x).shape, seed=SEED)
    upstream = tf.cast(upstream, policy.compute_dtype)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            with flow.read_by(flow.GRAPH):  # as a part of a model
                output = case.call(layer, x)
            targets = [output, *layer.losses]
        given = [tf.cast(upstream, output.dtype), *map(tf.ones_like, layer.losses)]
        weights = [weight.value for weight in layer.trainable_variables]
        return output, tape.gradient(targets, [x, *weights], given)

    return step


def _model_step(name, policy):
    return steps.keras_step(WORKLOADS[name], "bare", "SGD", policy)


_STEPS = {"layer": layer_step, "model": _model_step}
