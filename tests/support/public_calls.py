"""Calls of everything public with arguments that are right, to put wrong ones in."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

import keras_mp
from keras_mp import callbacks, layers, plot, scaling

X, Y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")


@dataclasses.dataclass
class Call:
    """A call that works.

    Attributes:
        function: What is called.
        arguments: Right arguments, by name; a function stands for one that is made
            anew for each call.
        words: What the message of each error has, one of them.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    words: tuple[str, ...]

    def made(self):
        """Return the arguments of a call."""
        return {
            name: value() if inspect.isfunction(value) else value
            for name, value in self.arguments.items()
        }


def model(policy="mixed_float16"):
    """Return a small model, compiled."""
    with keras_mp.policy_scope(policy):
        dense = [keras.layers.Dense(2), keras.layers.Dense(1)]
        made = keras.Sequential([keras.Input((2,)), *dense], name="net")
        keras_mp.compile(made, "sgd", "mse", guard=True)
    return made


def state_of(model):
    """Return all that a refused call may not change, to be compared."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else [])]
    return {
        "variables": [
            (each.path, each.dtype, each.numpy().tolist()) for each in variables
        ],
        "policies": [each.dtype_policy.get_config() for each in model.layers],
        "optimizer": (id(optimizer), repr(optimizer and optimizer.get_config())),
        "compiled": repr(model._compile_config and model._compile_config.config),
        "config": repr(model.get_config()),
        "global policy": keras.config.dtype_policy().name,
    }


def _of(function, /, *words, **arguments):
    return Call(function, arguments, (function.__name__, *words))


def _compile(**arguments):
    keras_mp.compile(optimizer="sgd", loss="mse", **arguments)


def _scope(policy):
    with keras_mp.policy_scope(policy):
        keras.layers.Dense(1)


#: What Keras checks, in words of its own, or takes as it is; and what may be anything
#: that is true or false.
KERAS_CHECKS = {"activation", "input_signature", "loss", "sample", "sample_weight"}
KERAS_CHECKS |= {"optimizer", "inner_optimizer", "overwrite", "verify", "x", "y"}

#: What Keras, matplotlib and Python say of a name that they do not know.
UNKNOWN_NAMES = (
    "Could not locate class",
    "embedded null byte",
    "extension for saving",
    "is not supported",
)


def calls(folder, diagnosis):
    """Return the calls by name.

    Args:
        folder: Where files are: ``model.keras``, and ``flight.npz`` of a step of it.
        diagnosis: What `keras_mp.diagnose` returned.
    """
    made = [
        *_of_policies(),
        *_of_models(folder),
        *_of_rules(),
        *_of_layers(),
        *_of_callbacks(folder),
        *_of_pictures(diagnosis),
    ]
    return {each.words[0]: each for each in made}


def _of_policies():
    rules = {"float32": (), "allow": (), "follow": ()}
    yield _of(keras_mp.Policy, "policy", name="mixed_float16", **rules)
    yield _of(keras_mp.set_policy, "policy", policy="mixed_float16")
    yield _of(_scope, "policy", policy="mixed_float16")


def _of_models(folder):
    settings = {"scaling": None, "skip_spikes": None, "on_skip": None}
    policy = {"policy": None, "guard": None}
    batch = {"model": model, "x": X, "y": Y, "sample_weight": None, "loss": None}
    yield _of(keras_mp.convert, "policy", model=model, policy="mixed_bfloat16")
    every = {"model": model, **settings, **policy}
    yield _of(_compile, "compile", "policy", *settings, **every)
    yield _of(keras_mp.compile, model=model, optimizer="sgd", loss="mse")
    yield _of(
        keras_mp.wrap_optimizer, *settings, model=model, optimizer="sgd", **settings
    )
    yield _of(
        keras_mp.LossScaleOptimizer,
        "LossScale",
        *settings,
        inner_optimizer="sgd",
        scaling=None,
        initial_scale=None,
        dynamic_growth_steps=None,
        all_reduce_dtype=None,
        skip_spikes=None,
    )
    yield _of(keras_mp.calibrate_scale, **batch, headroom=2)
    yield _of(keras_mp.diagnose, **batch, scale=None)
    path = str(folder / "out.tflite")
    yield _of(
        keras_mp.export,
        model=model,
        path=path,
        format=None,
        input_signature=None,
        sample=None,
        verify=lambda: False,
        overwrite=lambda: True,
    )
    path = str(folder / "saved.keras")
    yield _of(keras_mp.save_model, model=model, path=path, weights_dtype=None)
    path = str(folder / "state.npz")
    yield _of(keras_mp.save_training_state, model=model, path=path)
    yield _of(keras_mp.load_training_state, model=model, path=path)
    yield _of(keras_mp.lint, model=model, batch_size=None)
    path = str(folder / "model.keras")
    yield _of(keras_mp.load_model, "policy", path=path, policy=None)
    yield _of(
        keras_mp.memory_report,
        "policy",
        model=model,
        batch_size=2,
        policy=None,
        optimizer=None,
    )
    yield _of(keras_mp.replay, file=str(folder / "flight.npz"), model=model)


def _of_rules():
    rule = {"initial_scale": 8.0, "backoff_factor": 0.5}
    rule |= {"min_scale": 1.0, "max_scale": 64.0}
    yield _of(
        scaling.DynamicLossScale,
        **rule,
        growth_factor=2.0,
        growth_interval=5,
        hysteresis=1,
        hysteresis_refill="growth",
        overflow_tolerance=0.0,
        on_floor="hold",
    )
    yield _of(
        scaling.LogNormalLossScale,
        **rule,
        dtype="float16",
        mean_decay=0.9,
        variance_decay=0.9,
        overflow_sigmas=3.0,
    )
    yield _of(scaling.StaticLossScale, scale=2.0)
    yield _of(scaling.get, "scaling", identifier="dynamic")
    yield _of(keras_mp.SpikeRule, deviations=6.0, window=8, patience=2)


def _of_layers():
    yield _of(layers.Float32, layer=lambda: keras.layers.Dense(1), output_dtype=None)
    yield _of(layers.Softmax, output_dtype=None)
    yield _of(layers.Activation, activation="relu", output_dtype=None)
    yield _of(layers.LayerNormalization, output_dtype=None)
    yield _of(layers.UnitNormalization, output_dtype=None)
    yield _of(keras_mp.float32, function=lambda: keras.ops.exp, output_dtype=None)


def _of_callbacks(folder):
    looks = {"every": 2, "rows": None, "keep": 2, "loss": None}
    yield _of(callbacks.ScalerStats, frequency=2)
    yield _of(
        callbacks.ScaleGuard,
        action="warn",
        max_skipped=0.5,
        min_scale=None,
        window=20,
        factor=0.5,
        batch=None,
    )
    yield _of(callbacks.OverflowMonitor, max_reports=2)
    yield _of(callbacks.RetrySkipped, times=2)
    path = str(folder / "backup")
    yield _of(callbacks.BackupAndRestore, backup_dir=path, every=2, keep=2)
    yield _of(
        callbacks.NumericsMonitor,
        **looks,
        headroom=1.0,
        log_dir=None,
        csv=None,
        sample=8,
    )
    yield _of(callbacks.ShadowCheck, **looks, limit=0.5)
    path = str(folder / "flights")
    yield _of(callbacks.FlightRecorder, path=path, max_files=1, max_bytes=100)


def _of_pictures(diagnosis):
    made = {"diagnosis": diagnosis, "path": None}
    yield _of(plot.scale, "keras_mp.plot", run=[1.0, 2.0], path=None)
    yield _of(plot.ranges, "keras_mp.plot", **made)
    yield _of(plot.errors, "keras_mp.plot", **made)
    yield _of(plot.histograms, "keras_mp.plot", **made, layers=None)
