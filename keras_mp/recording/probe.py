"""A function of a batch that is compiled once, and leaves the model as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mp import dtypes, private
from keras_mp.recording.formats import FLOAT32, FORMATS
from keras_mp.recording.measures import Measures, merged, read, sampled
from keras_mp.recording.step import Batch, Gradients, Pass, stateless

_NO_LOSS = (
    "{} needs a loss that depends on the weights of model '{}', and what it was "
    "compiled with gives none. If its `train_step` computes a loss of its own, pass "
    "loss=keras.losses.MeanSquaredError() or any function of y and y_pred."
)


class Compiled:
    """Runs batches through a model in a graph, and changes nothing.

    Args:
        model: A Keras model with a ``call`` and a loss.
        run: ``run(batch, scale)`` returns tensors, called once as the graph is traced.
    """

    def __init__(self, model: keras.Model, run: Callable) -> None:
        self._model = model
        self._replicas = 1
        strategy = private.trainer.strategy_of(model)
        if strategy is not None:
            self._replicas = strategy.num_replicas_in_sync
        eager = model.run_eagerly
        self._run = (
            run if eager else tf.function(run, reduce_retracing=True, autograph=False)
        )

    def __call__(self, batch: Batch, scale: float, rows: int | None = None) -> Any:
        """Return the tensors for one replica's share of a batch.

        Args:
            batch: The `Batch`.
            scale: The loss scale.
            rows: How many of the first rows are taken; None for all.
        """
        if rows is not None:
            batch = keras.tree.map_structure(
                lambda leaf: None if leaf is None else leaf[:rows], batch
            )
        # Each replica's loss is divided by their number.
        return self._run(batch, tf.constant(scale / self._replicas, tf.float32))


class Reading(NamedTuple):
    """What a layer returned for a batch, all its calls together, and what came back.

    Attributes:
        dtype: The dtype of what it returned.
        output: The `Measures` of what it returned.
        gradient: The `Measures` of the gradients that came back for it, scaled.

    Example:

    >>> from keras_mp.recording import Measures, Reading
    >>> Reading("float16", Measures(8, largest=1023.5), Measures()).headroom
    6.0
    """

    dtype: str
    output: Measures
    gradient: Measures

    @property
    def headroom(self) -> float:
        """How many bits the largest number returned is below the end of the dtype.

        0 if a number is infinite or NaN, infinite if all are 0.
        """
        return _bits(self.dtype, self.output)

    @property
    def gradient_headroom(self) -> float:
        """As ``headroom``, of the gradients that came back, scaled."""
        return _bits(self.dtype, self.gradient)


def _bits(dtype: str, measures: Measures) -> float:
    if not measures.finite:
        return 0.0
    end = FORMATS.get(dtype, FLOAT32).largest
    return math.log2(end / measures.largest) if measures.largest else math.inf


class Probe:
    """Reads what all layers return for a batch, and what comes back for it.

    A container that returns what a layer inside it has returned is left out, and so
    are layers inside loops of a graph, such as the cells of an RNN.

    Args:
        model: A Keras model with a ``call`` and a loss.
        user: What asks for it, for errors.
        loss: As for `Pass`.
        numbers: How many numbers of a tensor are counted at most.
    """

    def __init__(
        self, model: keras.Model, user: str, loss: Callable | None, numbers: int
    ) -> None:
        self._model = model
        self._user = user
        self._loss = loss
        self._numbers = numbers
        self._layers: list[tuple[str, str]] = []
        self._function = Compiled(model, self._measured)

    def read(
        self, batch: Batch, scale: float, rows: int | None = None
    ) -> tuple[float, dict[str, Reading]]:
        """Return the loss, and by path what each layer did. Synchronises.

        Args:
            batch: As for `Compiled`.
            scale: As for `Compiled`.
            rows: As for `Compiled`.
        """
        loss, counts, extremes = self._function(batch, scale, rows)
        both = zip(counts.numpy(), extremes.numpy(), strict=True)
        measures = map(read, both)
        found: dict[str, list[Reading]] = {}
        for path, dtype in self._layers:
            reading = Reading(dtype, next(measures), next(measures))
            found.setdefault(path, []).append(reading)
        return float(loss), {path: _together(each) for path, each in found.items()}

    def _measured(self, batch: Batch, scale: Any) -> tuple[Any, Any, Any]:
        with stateless(self._model):
            run, gradients = passed(self._model, self._user, batch, self._loss, scale)
        self._layers, measures = [], []
        for call, backward in zip(run.calls, gradients.outputs, strict=True):
            of_call = zip(call.outputs, backward, call.from_inside, strict=True)
            for output, gradient, from_inside in of_call:
                if not from_inside:
                    self._layers.append((call.path, dtypes.dtype_of(output)))
                    gradient = tf.zeros([0]) if gradient is None else gradient
                    measures += [
                        sampled(each, self._numbers) for each in (output, gradient)
                    ]
        counts, extremes = zip(*measures, strict=True)
        return run.loss, tf.stack(counts), tf.stack(extremes)


def passed(
    model: keras.Model, user: str, batch: Batch, loss: Callable | None, scale: Any
) -> tuple[Pass, Gradients]:
    """Return a pass of ``batch`` and its gradients, and see that there are some.

    Raises:
        ValueError: The loss does not depend on any weight, or there is none.
    """
    try:
        run = Pass(model, batch, loss)
    except ValueError as error:
        if loss is None and getattr(model, "loss", None) is None:
            raise ValueError(_NO_LOSS.format(user, model.name)) from error
        raise
    gradients = run.gradients(scale)
    if all(gradient is None for gradient in gradients.weights):
        raise ValueError(_NO_LOSS.format(user, model.name))
    return run, gradients


def _together(readings: list[Reading]) -> Reading:
    if len(readings) == 1:
        return readings[0]
    dtypes, outputs, gradients = zip(*readings, strict=True)
    return Reading(dtypes[0], merged(outputs), merged(gradients))
