"""What the numbers of one training batch do in every layer, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mp import dtypes, private
from keras_mp.float32_model import in_float32
from keras_mp.recording.formats import Format, coarsest
from keras_mp.recording.measures import (
    Error,
    Measures,
    compared,
    measured,
    read,
    read_error,
)
from keras_mp.recording.step import Batch, Gradients, Pass, unchanged


class Tensor(NamedTuple):
    """A tensor of a record, of which the numbers themselves are gone.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
        measures: Its `Measures`.
        error: Its `Error` against float32, in units in the last place of the model's
            dtype of low precision; None where it was not computed.
    """

    dtype: str
    shape: tuple[int, ...]
    measures: Measures
    error: Error | None = None

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or NaN."""
        return self.measures.finite


class LayerCall(NamedTuple):
    """What one call of a layer read and returned.

    Attributes:
        path: Names of the containers and of the layer, joined by ``/``.
        kind: The name of its class.
        dtype: The dtype it computes in; empty for an operation that is no layer.
        outer: The index of the call around it; None for the model's own.
        inputs: A tuple of `Tensor`.
        outputs: As ``inputs``.
        input_gradients: The gradient of the scaled loss for each input; None where the
            loss does not depend on it.
        output_gradients: As ``input_gradients``.
    """

    path: str
    kind: str
    dtype: str
    outer: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_gradients: tuple[Tensor | None, ...]
    output_gradients: tuple[Tensor | None, ...]


class Weight(NamedTuple):
    """A variable of a layer.

    Attributes:
        layer: The path of the layer.
        name: The name of the variable.
        path: Keras's path of the variable.
        value: Its numbers.
        gradient: The gradient of the scaled loss; None where it has none.
    """

    layer: str
    name: str
    path: str
    value: Tensor
    gradient: Tensor | None


class Record(NamedTuple):
    """What the numbers of one training batch do in every layer.

    Attributes:
        calls: The list of `LayerCall`, in the order in which they began.
        weights: The list of `Weight` of all layers.
        loss: The loss, not scaled.
        losses: A dict of the name of each loss, or of the layer that added one, to its
            `Measures`.
        scale: What the loss was multiplied by.
    """

    calls: list[LayerCall]
    weights: list[Weight]
    loss: float
    losses: dict[str, Measures]
    scale: float


class Recorder:
    """Runs one batch of a model forward and backward, and records it.

    Layer by layer and not in a graph, so that loops, branches and layers inside layers
    are seen. Nothing in the model changes.

    Args:
        model: A Keras model with a ``call`` and a loss.
        batch: The `Batch`.
        loss: As for `Pass`.

    Attributes:
        model: As given.
        batch: As given.
    """

    def __init__(
        self, model: keras.Model, batch: Batch, loss: Callable | None = None
    ) -> None:
        self.model = model
        self.batch = batch
        self._loss = loss
        self._draws = private.draws.Draws()
        self._run = self._exact = self._exact_record = None

    def under_other_policies(self) -> Recorder:
        """Return a recorder of the batch for now that layers have other policies.

        It has the random numbers and the passes in float32 of this one, so that only
        the pass in the present precision is made anew. Weights must not have changed.
        """
        other = Recorder(self.model, self.batch, self._loss)
        other._draws, other._exact = self._draws, self.exact()
        other._exact_record = self.record_in_float32()
        return other

    def run(self) -> Pass:
        """Return the forward pass in the present precision; it is made once."""
        if self._run is None:
            first = self._exact is None
            drawn = self._draws.noted() if first else self._draws.repeated()
            with _eagerly(), unchanged(self.model), drawn:
                self._run = Pass(self.model, self.batch, self._loss)
        return self._run

    def exact(self) -> Pass:
        """Return the forward pass in float32, with the same random numbers."""
        self.run()
        if self._exact is None:
            with (
                _eagerly(),
                unchanged(self.model),
                in_float32(self.model),
                self._draws.repeated(),
            ):
                self._exact = Pass(self.model, self.batch, self._loss)
        return self._exact

    def record(self, scale: float, *, against_float32: bool = False) -> Record:
        """Return the `Record` at a loss scale. Synchronises with the device.

        Args:
            scale: The loss scale.
            against_float32: Whether the tensors get their `Error`.
        """
        run = self.run()
        exact = self.exact() if against_float32 else None
        return _record(self.model, run, run.gradients(scale), scale, exact)

    def record_in_float32(self) -> Record:
        """Return the `Record` in float32, at a scale of 1; it is made once.

        Synchronises with the device.
        """
        if self._exact_record is None:
            exact = self.exact()
            gradients = exact.gradients(1.0)
            self._exact_record = _record(self.model, exact, gradients, 1.0, None)
        return self._exact_record


def _eagerly():
    """Return a context in which code under ``tf.function`` is run, not traced."""
    return _EagerFunctions()


class _EagerFunctions:
    def __enter__(self) -> None:
        self._before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)

    def __exit__(self, *error: Any) -> None:
        tf.config.run_functions_eagerly(self._before)


def _record(
    model: keras.Model,
    run: Pass,
    gradients: Gradients,
    scale: float,
    exact: Pass | None,
) -> Record:
    form = coarsest(call.dtype for call in run.calls)
    others: list[Any] = [[None] * 4] * len(run.calls)
    exact_weights = None
    if exact is not None:
        exact_gradients = exact.gradients(scale)
        exact_weights = exact_gradients.weights
        # Code of the user's own may call other layers in float32.
        if [call.path for call in run.calls] == [call.path for call in exact.calls]:
            others = _by_call(exact, exact_gradients)
    calls = []
    for call, own, other in zip(
        run.calls, _by_call(run, gradients), others, strict=True
    ):
        tensors = [_tensors(*each, form) for each in zip(own, other, strict=True)]
        calls.append(LayerCall(call.path, call.kind, call.dtype, call.outer, *tensors))
    losses = {name: read(measured(value)) for name, value in run.losses.items()}
    weights = _weights(model, gradients, exact_weights, form)
    return Record(calls, weights, float(run.loss), losses, scale)


def _by_call(run: Pass, gradients: Gradients) -> list[Any]:
    """Return for each call its inputs, its outputs and the gradients of both."""
    of_calls = zip(run.calls, gradients.inputs, gradients.outputs, strict=True)
    return [(call.inputs, call.outputs, *both) for call, *both in of_calls]


def _tensors(
    tensors: Iterable[Any], exact: Iterable[Any] | None, form: Format
) -> tuple[Any, ...]:
    tensors = list(tensors)
    others = [None] * len(tensors) if exact is None else list(exact)
    if len(others) != len(tensors):
        others = [None] * len(tensors)
    pairs = zip(tensors, others, strict=True)
    return tuple(_tensor(tensor, form, other) for tensor, other in pairs)


def _tensor(tensor: Any, form: Format, exact: Any = None) -> Tensor | None:
    if tensor is None:
        return None
    error = None
    if exact is not None and exact.shape == tensor.shape:
        error = read_error(compared(tensor, exact), form)
    return Tensor(
        dtypes.dtype_of(tensor), tuple(tensor.shape), read(measured(tensor)), error
    )


def _weights(
    model: keras.Model, gradients: Gradients, exact: Any, form: Format
) -> list[Weight]:
    variables = model.trainable_variables
    exact = exact or [None] * len(variables)
    found = {
        id(variable): _tensor(gradient, form, other)
        for variable, gradient, other in zip(
            variables, gradients.weights, exact, strict=True
        )
    }
    seen: dict[int, Weight] = {}
    for layer, path in private.layers.with_paths(model):
        for variable in private.layers.own_variables(layer):
            if not keras.backend.is_float_dtype(variable.dtype):
                continue
            value: Any = _tensor(tf.convert_to_tensor(variable.value), form)
            weight = Weight(
                path, variable.name, variable.path, value, found.get(id(variable))
            )
            seen.setdefault(id(variable), weight)
    return list(seen.values())
