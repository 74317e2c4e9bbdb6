"""The user's own model (``.keras``) and data (``.npz``): checked, errors explained."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_mp
from keras_mp import data_files, model_files
from keras_mp.compare.tasks import Data, Job, Task, loss_scaling
from keras_mp.terminal import UserError, explain


def check_files(job: Job) -> None:
    """Check the model and data files before any process starts.

    Raises:
        UserError: They cannot be trained with.
    """
    if not (job.model and job.data):
        given, missing = ("--model", "--data") if job.model else ("--data", "--model")
        raise explain(
            f"{given} without {missing}",
            "a model file and a data file together",
            f"only {given} {job.model or job.data}",
            f"add {missing}, or leave out both to train a built-in task",
        )
    model_files.check(job.model, f"--model {job.model}")
    load_data(job)


def load_data(job: Job) -> Data:
    """Return the checked arrays of the ``.npz`` file; floats become float32.

    Without x_val and y_val the last 20 % of the samples are for validation.

    Raises:
        UserError: The file cannot be read, or its arrays cannot be trained on.
    """
    called = f"--data {job.data}"
    arrays = data_files.read(str(job.data), called, ("x_val", "y_val"))
    for name, array in arrays.items():
        _check_finite(called, name, array)
    for first, second in (("x", "y"), ("x_val", "y_val")):
        if first in arrays:
            data_files.check_same_samples(called, first, second, arrays)
    if "x_val" in arrays:
        return Data(**arrays, notes=[_note(arrays["x"], arrays["x_val"])])
    x, y = arrays["x"], arrays["y"]
    cut = len(x) - max(1, len(x) // 5)
    if not cut:
        raise explain(
            called,
            "samples for training and, of these, the last 20 % for validation",
            "1 sample",
            "give more samples, or x_val and y_val too",
        )
    note = _note(x[:cut], x[cut:]) + " (the last 20 %)"
    return Data(x[:cut], y[:cut], x[cut:], y[cut:], [note])


def _note(x: np.ndarray, x_val: np.ndarray) -> str:
    return f"{len(x):,} training samples, {len(x_val):,} validation samples"


def _check_finite(called: str, name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise explain(
            called,
            f"finite numbers in {name}",
            f"{len(bad):,} NaN or infinite values, the first in sample {bad[0][0]}",
            "remove or replace them: one is enough to make the whole model NaN",
        )


def build(job: Job, policy: str, data: Data) -> keras.Model:
    """Return the model of the file, with its weights, compiled under the policy.

    Raises:
        UserError: It cannot be loaded, compiled or evaluated on the data.
    """
    called = f"--model {job.model}"
    model = model_files.load(str(job.model), called, "compare", "keras_mp.compile")
    arguments = _compile_arguments(model, job)
    scaling = loss_scaling(job, policy)
    keras_mp.compile(model, policy=policy, scaling=scaling, **arguments)
    try:
        model.evaluate(data.x[:2], data.y[:2], batch_size=2, verbose=0)
    except Exception as error:
        called = f"{called} --data {job.data}"
        raise does_not_fit(called, model, data.x, data.y, error) from None
    return model


def _compile_arguments(model: keras.Model, job: Job) -> dict[str, Any]:
    """Return what to compile with: the command line's options, else what was saved."""
    config = model.get_compile_config() if model.compiled else None
    saved = keras.saving.deserialize_keras_object(config) if config else {}
    arguments = {
        name: saved[name]
        for name in ("optimizer", "loss", "loss_weights", "metrics", "weighted_metrics")
        if saved.get(name) is not None
    }
    if job.loss or "loss" not in arguments:
        arguments["loss"] = loss_of(job.loss, f"--model {job.model}")
        arguments.setdefault("metrics", _metrics(job.loss or ""))
    arguments["optimizer"] = _optimizer(job, arguments.get("optimizer", "adam"))
    return arguments


def loss_of(name: str | None, called: str) -> Any:
    """Return the loss that ``--loss`` names.

    Args:
        name: The name; None if it was not given.
        called: What the user typed for a model without a loss, for the message.

    Raises:
        UserError: There is no name, or it names no loss.
    """
    if not name:
        raise explain(
            called,
            "a compiled model, or the name of a loss",
            "a model that was saved without compile()",
            "add --loss, e.g. --loss sparse_categorical_crossentropy or --loss mse",
        )
    try:
        return keras.losses.get(name)
    except ValueError:
        raise explain(
            f"--loss {name}",
            "the name of a loss in keras.losses",
            "an unknown name",
            "write e.g. mse, binary_crossentropy, sparse_categorical_crossentropy",
        ) from None


def does_not_fit(
    called: str, model: keras.Model, x: Any, y: Any, error: Exception
) -> UserError:
    """Return the error for arrays, in any structure, that a model cannot take."""
    got_x, got_y = keras.tree.map_structure(np.shape, (x, y))
    return explain(
        called,
        "x and y of the shapes that the model and its loss take: "
        f"input {_shape(model, 'input')}, output {_shape(model, 'output')}",
        f"x {got_x}, y {got_y}: {model_files.on_one_line(error)}",
        "reshape the arrays, or choose another --loss",
    )


def _metrics(loss: str) -> list[str]:
    return ["accuracy"] if "crossentropy" in loss.lower() else []


def _optimizer(job: Job, saved: Any) -> keras.optimizers.Optimizer:
    """Return a new optimizer without loss scaling."""
    try:
        optimizer = keras.optimizers.get(job.optimizer or saved)
    except ValueError:
        raise explain(
            f"--optimizer {job.optimizer}",
            "the name of an optimizer in keras.optimizers",
            "an unknown name",
            "write e.g. adam, adamw, sgd, rmsprop",
        ) from None
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    config = optimizer.get_config()
    if job.learning_rate:
        config["learning_rate"] = job.learning_rate
    return type(optimizer).from_config(config)


def _shape(model: keras.Model, which: str) -> Any:
    return getattr(model, f"{which}_shape", "unknown")  # unknown before the first call


CUSTOM = Task("own model", 5, 32, load_data, build)
