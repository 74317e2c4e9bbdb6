"""Training of small and large variables, for tests of updates."""

import keras
import numpy as np
import tensorflow as tf

import keras_mp
from support.gradients import RUNS

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


INNER = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.1),
    "amsgrad": lambda: Adam(0.1, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.01),
    "clipped": lambda: Adam(0.1, global_clipnorm=0.5),
    "averaged": lambda: Adam(0.1, use_ema=True, ema_overwrite_frequency=2),
    "schedule": lambda: SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)),
    "other": lambda: keras.optimizers.RMSprop(0.1),
}


# Four of a shape that is stacked, one alone, one large one, one scalar.
SHAPES = [*[(3, 4)] * 4, (5,), (130, 70), ()]


def variables(shapes=SHAPES, dtype="float32"):
    random = np.random.default_rng(0)
    return [
        keras.Variable(random.normal(size=shape), dtype=dtype, name=f"weight_{place}")
        for place, shape in enumerate(shapes)
    ]


def gradients(step, shapes=SHAPES):
    random = np.random.default_rng(step)
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def train(inner, mode, dtype="float32", steps=4, scale=1024.0):
    """Return what our optimizer, or the bare one if ``scale`` is None, makes."""
    optimizer, scale = inner(), scale or 1.0
    if scale != 1.0:
        optimizer = keras_mp.LossScaleOptimizer(optimizer, initial_scale=scale)
    weights = variables(dtype=dtype)
    optimizer.build(weights)

    def step(grads):
        if scale != 1.0:
            optimizer.scale_loss(0.0)
        optimizer.apply([tf.cast(g, dtype) * scale for g in grads])

    step = RUNS[mode](step)
    for number in range(steps):
        step([tf.constant(g) for g in gradients(number)])
    return weights + getattr(optimizer, "inner_optimizer", optimizer).variables


def operations(optimizer, grads, jit_compile=None):
    """Return the types of all operations of one traced step."""
    apply = tf.function(lambda *grads: optimizer.apply(grads), jit_compile=jit_compile)
    concrete = apply.get_concrete_function(*grads)
    graphs = [concrete.graph.as_graph_def()]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [n for graph in graphs for f in graph.library.function for n in f.node_def]
    return [node.op for node in nodes]


def built(inner, shapes):
    optimizer = keras_mp.LossScaleOptimizer(inner)
    weights = variables(shapes)
    optimizer.build(weights)
    optimizer.scale_loss(0.0)
    return optimizer, weights
