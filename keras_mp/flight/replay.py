"""`replay`: repeats the step of a file, and says what went wrong."""

from __future__ import annotations

import hashlib
import os
import warnings

import keras
import numpy as np

from keras_mp import arguments, private
from keras_mp.diagnosis import Diagnosis, diagnose
from keras_mp.flight.file import Flight, read


def replay(file: str | os.PathLike[str], model: keras.Model) -> Diagnosis:
    """Repeat a step that `keras_mp.callbacks.FlightRecorder` wrote, and diagnose it.

    The batch runs at the loss scale of the step, with its random numbers, as in
    `keras_mp.diagnose`. Nothing in the model changes. It warns if the weights are not
    those of the step.

    Args:
        file: The file.
        model: The model of that training, compiled, with the weights that it had
            before the step, or the nearest that were saved.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError: ``model`` is not a Keras model.
        ValueError: There is no such file; it is damaged or of another kind; it holds no
            batch, because that was too large; or the model has other layers that draw
            random numbers than that of the step.

    Synchronises with the device.

    Example:

    >>> import warnings
    >>> x[3] = float("nan")
    >>> recorder = keras_mp.callbacks.FlightRecorder("flights")
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     history = model.fit(x, y, verbose=0, callbacks=[recorder])
    >>> diagnosis = keras_mp.replay(recorder.files[0], model)
    >>> diagnosis.culprits[0].phase, diagnosis.scale
    ('input', 8.0)
    """
    return replayed(read(file), os.fspath(file), model)


def replayed(flight: Flight, file: str, model: keras.Model) -> Diagnosis:
    """Repeat the step of a `Flight` that was read from ``file``, as `replay` does."""
    called = f"keras_mp.replay({file!r}, model)"
    arguments.check_model(called, model)
    if flight.batch is None:
        raise ValueError(
            f"{called} needs a file with a batch, and this one holds none: "
            f"{flight.left_out}. It says: step {flight.step}, {flight.cause}."
        )
    seeds = private.draws.seeds_of(model)
    if len(seeds) != len(flight.seeds):
        raise ValueError(
            f"{called} needs the model that the step was made with, '{flight.model}', "
            f"which has {len(flight.seeds)} random generators. Got model "
            f"'{model.name}', which has {len(seeds)}."
        )
    if weights_digest(model) != flight.weights:
        warnings.warn(
            f"{called}: the weights of model '{model.name}' are not those of step "
            f"{flight.step}, so that the batch may do otherwise. Weights that were "
            "saved nearer to that step come closer.",
            stacklevel=3,
        )
    with private.draws.seeds_set(seeds, flight.seeds):
        return diagnose(model, *flight.batch, scale=flight.scale)


def weights_digest(model: keras.Model) -> str:
    """Return a digest of the trainable weights of ``model``. Synchronises."""
    digest = hashlib.sha256()
    for variable in model.trainable_variables:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()
