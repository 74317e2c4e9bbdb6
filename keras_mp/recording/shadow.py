"""A batch in the present precision and in float32, as one compiled function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mp import private
from keras_mp.float32_model import traced_in_float32
from keras_mp.recording.formats import coarsest
from keras_mp.recording.measures import Error, compared, read_error
from keras_mp.recording.probe import Compiled, passed
from keras_mp.recording.step import Batch, Pass, stateless


class GradientError(NamedTuple):
    """How far the gradients of a layer's own weights are from float32's.

    Attributes:
        error: The `Error`, with NaN where a gradient is not finite.
        share: The norm of float32's gradients over that of the whole model's.
    """

    error: Error
    share: float


class Shadow:
    """Compares the gradients of each layer's weights with those in float32.

    Both passes draw the same random numbers.

    Args:
        model: A Keras model with a ``call`` and a loss.
        user: What asks for it, for errors.
        loss: As for `Pass`.
    """

    def __init__(self, model: keras.Model, user: str, loss: Callable | None) -> None:
        self._model = model
        self._user = user
        self._loss = loss
        self._layers: list[str] = []
        self._format = coarsest(
            layer.compute_dtype for layer in private.layers.walk(model)
        )
        self._function = Compiled(model, self._compared)

    def read(
        self, batch: Batch, scale: float, rows: int | None = None
    ) -> dict[str, GradientError]:
        """Return the `GradientError` of each layer with weights, by path. Synchronises.

        Args:
            batch: As for `Compiled`.
            scale: As for `Compiled`.
            rows: As for `Compiled`.
        """
        vectors = self._function(batch, scale, rows).numpy()
        sums: dict[str, Any] = {}
        for path, vector in zip(self._layers, vectors, strict=True):
            sums[path] = sums.get(path, np.zeros_like(vector)) + vector
        whole = math.sqrt(sum(vector[1] for vector in sums.values()))
        return {
            path: GradientError(
                read_error(vector, self._format),
                math.sqrt(vector[1]) / whole if whole else 0.0,
            )
            for path, vector in sums.items()
        }

    def _compared(self, batch: Batch, scale: Any) -> Any:
        draws = private.draws.Draws()
        with stateless(self._model), draws.noted():
            _, gradients = passed(self._model, self._user, batch, self._loss, scale)
        with (
            stateless(self._model),
            traced_in_float32(self._model),
            draws.repeated(),
        ):
            exact = Pass(self._model, batch, self._loss).gradients(scale)
        self._layers, vectors = [], []
        of_weights = zip(gradients.weights, exact.weights, strict=True)
        for path, (own, other) in zip(_paths(self._model), of_weights, strict=True):
            if own is not None and other is not None:
                self._layers.append(path)
                vectors.append(compared(own, other))
        return tf.stack(vectors)


def _paths(model: keras.Model) -> list[str]:
    """Return the path of the layer that owns each trainable variable of ``model``."""
    owners: dict[int, str] = {}
    for layer, path in private.layers.with_paths(model):
        for variable in private.layers.own_variables(layer):
            owners.setdefault(id(variable), path)
    return [owners.get(id(each), str(each.name)) for each in model.trainable_variables]
