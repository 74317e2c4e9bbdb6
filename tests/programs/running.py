"""Trains one program in one way, and returns what it reported."""

import inspect
import warnings
from typing import NamedTuple

import keras
import numpy as np

import keras_mp

from .program import BATCH

OURS = ("set_policy", "convert")

# Small enough that no step is skipped: the losses of the next are float32's then.
SCALE = 256.0


class Outcome(NamedTuple):
    """What a run reported.

    Args:
        logs: What ``fit`` reported after each step, by name.
        evaluated: What ``evaluate`` returned, by name, after the three steps.
        predictions: What ``predict`` returned, as a flat list of arrays.
        moved: The norm of the optimizers' momentum: how large the updates were.
        warnings: The texts of all warnings.
        layers: The names of all layers.
    """

    logs: dict
    evaluated: dict
    predictions: list
    moved: float
    warnings: list
    layers: list


def run(program, way, policy):
    """Return the `Outcome` of ``program``.

    Args:
        program: A `Program`.
        way: ``"float32"``; ``"keras"`` for Keras alone under ``policy``;
            ``"set_policy"`` for keras_mp before the model is built, or
            ``"convert"`` after it.
        policy: A name of a policy.
    """
    keras.utils.set_random_seed(0)
    keras.utils.clear_session()
    try:
        with warnings.catch_warnings(record=True) as caught:
            # Keras and TensorFlow warn of programs too; `agreement` looks at the rest.
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)  # for their authors
            _set_policy(way, policy)
            outcome = _train(_Way(way, policy), _build(program, way, policy))
    finally:
        keras.config.set_dtype_policy("float32")
    return outcome._replace(warnings=[str(each.message) for each in caught])


def _set_policy(way, policy):
    if way == "keras":
        keras.config.set_dtype_policy(policy)
    if way == "set_policy":
        keras_mp.set_policy(policy)


def _build(program, way, policy):
    if inspect.signature(program.build).parameters:
        return program.build(_Way(way, policy).compile)
    return program.build()


class _Way:
    """How models are compiled and optimizers are wrapped."""

    def __init__(self, name, policy):
        self.name = name
        self.ours = name in OURS
        self.converts = policy if name == "convert" else None
        self.scaling = None
        if policy == "mixed_float16":
            self.scaling = keras_mp.scaling.DynamicLossScale(initial_scale=SCALE)

    def compile(self, model, optimizer, loss=None, **options):
        if self.ours:
            options |= {"policy": self.converts, "scaling": self.scaling}
            return keras_mp.compile(model, optimizer, loss, **options)
        if self.scaling:
            optimizer = self.wrap(model, keras.optimizers.get(optimizer))
        model.compile(optimizer, loss, **options)

    def convert(self, model):
        """Convert a model that is compiled in a way of its own."""
        if self.converts:
            keras_mp.convert(model, self.converts)

    def wrap(self, model, optimizer):
        if self.ours:
            return keras_mp.wrap_optimizer(model, optimizer, self.scaling)
        if self.scaling:
            return keras.optimizers.LossScaleOptimizer(optimizer, SCALE)
        return optimizer


def _train(way, trial):
    model, recorder, optimizers = trial.model, _Recorder(), []

    def wrap(optimizer):
        optimizers.append(optimizer)
        return way.wrap(model, optimizer)

    if trial.loop or trial.compile:
        way.convert(model)
    if trial.loop:
        losses = trial.loop(model, wrap(trial.optimizer()), trial.x, trial.y)
        recorder.logs = {"loss": [float(loss) for loss in losses]}
    else:
        if trial.compile:
            trial.compile(model, wrap)
        else:
            optimizers.append(trial.optimizer())
            way.compile(model, optimizers[0], trial.loss, **trial.options)
            # The truth is the same without a graph, whose making takes long.
            model.run_eagerly |= way.name == "float32" and not model.jit_compile
        model.fit(
            trial.x, trial.y, **_feeding(trial), shuffle=False, callbacks=[recorder]
        )
    return Outcome(
        recorder.logs,
        *_used(trial),
        moved=sum(_momentum(each) for each in optimizers) ** 0.5,
        warnings=[],
        layers=[layer.name for layer in model._flatten_layers()],
    )


def _momentum(optimizer):
    return sum(
        np.square(variable.numpy()).sum()
        for variable in optimizer.variables
        if "momentum" in variable.path
    )


def _used(trial):
    """Return what ``evaluate`` and ``predict`` give."""
    if not trial.calls:
        return {}, []
    evaluated = {}
    if trial.loop is None:
        evaluated = trial.model.evaluate(
            trial.x, trial.y, **_feeding(trial), return_dict=True
        )
    predictions = trial.model.predict(trial.x, **_feeding(trial))
    flat = [np.asarray(each, "float32") for each in keras.tree.flatten(predictions)]
    return evaluated, flat


def _feeding(trial):
    is_array = all(hasattr(each, "shape") for each in keras.tree.flatten(trial.x))
    return {"verbose": 0} | ({"batch_size": BATCH} if is_array else {})


class _Recorder(keras.callbacks.Callback):
    """Notes what is reported after each step."""

    def __init__(self):
        super().__init__()
        self.logs = {}

    def on_train_batch_end(self, batch, logs=None):
        for name, value in logs.items():
            self.logs.setdefault(name, []).append(float(value))
