"""One training step of a Keras model under each of the compared optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import keras_mp
from benchmarks.workloads import SEED, Workload

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(1e-3),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
}

# Who is compared, and how each compiles a model with the optimizer it is given.
COMPILE = {
    "bare": lambda model, inner, **options: model.compile(
        inner, auto_scale_loss=False, **options
    ),
    "keras": lambda model, inner, **options: model.compile(
        keras.optimizers.LossScaleOptimizer(inner), **options
    ),
    "keras_mp": lambda model, inner, **options: keras_mp.compile(
        model, inner, scaling="dynamic", **options
    ),
}


def keras_step(
    workload: Workload,
    candidate: str,
    optimizer: str,
    policy: str,
    jit_compile: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> Callable[[], None]:
    """Return a function that makes one step of ``fit`` and waits for its end."""
    keras.utils.set_random_seed(SEED)
    scope = strategy.scope() if strategy else contextlib.nullcontext()
    with scope, keras_mp.policy_scope(policy):
        model = workload.build()
        COMPILE[candidate](
            model,
            OPTIMIZERS[optimizer](),
            loss=workload.loss,
            jit_compile=jit_compile,
        )
        model.optimizer.build(model.trainable_variables)
    return fit_step(model, workload.batch(workload.rows), strategy)


def fit_step(
    model: keras.Model,
    batch: tuple[np.ndarray, np.ndarray],
    strategy: tf.distribute.Strategy | None = None,
) -> Callable[[], None]:
    """Return a function that makes one of ``fit``'s steps on arrays ``x`` and ``y``."""
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    if strategy:
        dataset = strategy.experimental_distribute_dataset(dataset)
    batches = iter(dataset)
    model.make_train_function()

    def step():
        logs = model.train_function(batches)
        float(logs["loss"])
        # The loss is known before the weights are.
        model.optimizer.iterations.numpy()

    return step
