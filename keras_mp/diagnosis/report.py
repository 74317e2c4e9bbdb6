"""`Diagnosis`: what `keras_mp.diagnose` found."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from keras_mp import plot
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.diagnosis.text import text_of
from keras_mp.recording import FLOAT32, FORMATS, Error, Measures, Record, Tensor, merged

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LayerNumbers(NamedTuple):
    """What the numbers of one layer do in a batch, all its calls together.

    Attributes:
        path: The path of the layer.
        kind: The name of its class.
        dtype: The dtype it computes in.
        calls: How often it was called.
        output: The measures of what it returned.
        gradient: The measures of the gradients that came back for it, scaled.
        weights: The measures of its own weights.
        weight_gradient: The measures of their gradients, scaled.
        output_error: The error of what it returned against float32; None where it was
            not computed.
        gradient_error: The error of the gradients that came back.

    Example:

    >>> layer = keras_mp.diagnose(model, x, y).layers[-1]
    >>> layer.kind, layer.dtype, layer.calls, layer.output.size
    ('Dense', 'float32', 1, 8)
    """

    path: str
    kind: str
    dtype: str
    calls: int
    output: Measures
    gradient: Measures
    weights: Measures
    weight_gradient: Measures
    output_error: Error | None
    gradient_error: Error | None

    @property
    def headroom(self) -> float:
        """How many bits the largest number returned is below the end of the dtype."""
        return _bits(FORMATS.get(self.dtype, FLOAT32).largest, self.output.largest)

    @property
    def gradient_headroom(self) -> float:
        """As ``headroom``, of the gradients that came back, scaled."""
        return _bits(FORMATS.get(self.dtype, FLOAT32).largest, self.gradient.largest)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `keras_mp.diagnose` found; printed, a table.

    Attributes:
        culprits: A tuple of `Culprit`, first cause first; empty for a clean batch.
        layers: A tuple of `LayerNumbers`, in the order in which layers were called.
        scale: The loss scale.
        largest_safe_scale: The largest power of two at which no gradient overflows;
            None where there is none.
        underflow: The share of gradients of layers in low precision that are not 0 in
            float32 and become 0 at the scale; None where the loss is not finite, and
            with it no gradient.
        suggested_policy: The `Policy` with the fewest float32 rules under which the
            batch is clean; None if no rule can help or none is needed.
        verdict: What to do, in one sentence.
        loss: The loss of the batch, not scaled.

    Example:

    >>> diagnosis = keras_mp.diagnose(model, x, y)
    >>> diagnosis.culprits, diagnosis.scale, diagnosis.headroom > 0
    ((), 8.0, True)
    """

    culprits: tuple[Culprit, ...]
    layers: tuple[LayerNumbers, ...]
    scale: float
    largest_safe_scale: float | None
    underflow: float | None
    suggested_policy: keras.DTypePolicy | None
    verdict: str
    loss: float

    @property
    def headroom(self) -> float | None:
        """How many bits the loss scale may grow before a gradient overflows."""
        if self.largest_safe_scale is None:
            return None
        return math.log2(self.largest_safe_scale / self.scale)

    def __str__(self) -> str:
        return text_of(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the ranges of all layers, as `keras_mp.plot.ranges` does.

        Args:
            path: A file to write, such as ``"ranges.png"``; or None.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plot.ranges(self, path)

    def to_json(self) -> str:
        """Return everything as a JSON object; numbers that are not finite as text."""
        fields = {
            **dataclasses.asdict(self),
            "culprits": [culprit._asdict() for culprit in self.culprits],
            "layers": [_plain(layer) for layer in self.layers],
            "headroom": self.headroom,
            "suggested_policy": self.suggested_policy
            and self.suggested_policy.get_config(),
        }
        return json.dumps(_finite(fields), indent=2)


def _plain(layer: LayerNumbers) -> dict[str, Any]:
    return {
        name: value._asdict() if hasattr(value, "_asdict") else value
        for name, value in layer._asdict().items()
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _bits(largest: float, magnitude: float) -> float:
    return math.log2(largest / magnitude) if magnitude else math.inf


def layers_of(record: Record) -> tuple[LayerNumbers, ...]:
    """Return the `LayerNumbers` of each layer of a record."""
    calls: dict[str, list[Any]] = {}
    for call in record.calls:
        calls.setdefault(call.path, []).append(call)
    weights: dict[str, list[Any]] = {}
    for weight in record.weights:
        weights.setdefault(weight.layer, []).append(weight)
    return tuple(
        _layer(path, of_layer, weights.get(path, []))
        for path, of_layer in calls.items()
    )


def _layer(path: str, calls: list[Any], weights: list[Any]) -> LayerNumbers:
    outputs = [tensor for call in calls for tensor in call.outputs]
    gradients = [tensor for call in calls for tensor in call.output_gradients]
    return LayerNumbers(
        path,
        calls[0].kind,
        calls[0].dtype,
        len(calls),
        _merged(outputs),
        _merged(gradients),
        _merged([weight.value for weight in weights]),
        _merged([weight.gradient for weight in weights]),
        _worst(outputs),
        _worst(gradients),
    )


def _merged(tensors: list[Tensor | None]) -> Measures:
    return merged(tensor.measures for tensor in tensors if tensor is not None)


def _worst(tensors: list[Tensor | None]) -> Error | None:
    errors = [each.error for each in tensors if each is not None and each.error]
    return max(errors, key=lambda error: error.relative, default=None)


def underflow(record: Record, exact: Record | None) -> float | None:
    """Return the share of gradients that a loss scale leaves too small for their layer.

    Args:
        record: The record of a batch at the scale, a power of two.
        exact: Its record in float32, at the loss scale 1; None if ``record`` is one.

    Returns:
        The share; None if the loss is not finite, which tells nothing of gradients.
    """
    if not math.isfinite(record.loss):
        return None
    if exact is None:
        return 0.0
    forms = {call.path: FORMATS.get(call.dtype) for call in record.calls}
    lost = there = 0.0
    for call in exact.calls:
        form = forms.get(call.path)
        for gradient in call.output_gradients:
            if form is not None and gradient is not None:
                measures = gradient.measures
                lost += measures.below(form, record.scale) * measures.nonzero
                there += measures.nonzero
    return lost / max(there, 1.0)
