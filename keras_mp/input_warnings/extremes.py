"""The extremes of numbers that are rounded, noted on the device, and their faults."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import ml_dtypes
from keras import ops

from keras_mp import distribute, dtypes, private
from keras_mp.input_warnings.rounding import roundings

#: The number of casts that are watched, and of numbers that are read before each. On
#: two CPU cores a cast costs some 10 us a step, under XLA up to 80; four times as many
#: numbers another 30, and all numbers of large images milliseconds.
_SLOTS, _NUMBERS = 64, 2**14

# The largest number of each dtype, and up to where it has every whole number.
_LIMITS = {
    dtype: (float(ml_dtypes.finfo(dtype).max), 2 ** (ml_dtypes.finfo(dtype).nmant + 1))
    for dtype in dtypes.LOW_PRECISION
}


class Extremes:
    """For each cast the largest number before it, and the largest fractional part.

    Both are 0 for a cast that was not seen. The variable belongs to ``fit`` and not to
    the model, so that the model does not save it.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._slots = {}  # of the inputs' names, the layer and the dtype
        self._noted_eagerly = private.tracing.in_graph(self._note_call)
        with distribute.scope_of(model):
            self._values = keras.Variable(
                initializer="zeros",
                shape=(_SLOTS, 2),
                dtype="float32",
                trainable=False,
                synchronization="on_read",
                aggregation="only_first_replica",
                name="input_extremes",
            )

    def reset(self) -> None:
        """Set all extremes to 0."""
        with distribute.scope_of(self._model):
            self._values.assign(ops.zeros((_SLOTS, 2)))

    def note(self, x: Any) -> None:
        """Note the extremes of the batch ``x``, in any structure, after its step.

        A step that is not traced has no graph to find casts in. So the model's call is
        traced for it, and only what is noted is computed. An error here does not make
        the step fail.
        """
        with contextlib.suppress(Exception):
            if private.tracing.is_traced():
                self._note(x)
            else:
                self._noted_eagerly(x)

    def _note_call(self, x):
        # Without a state, the call changes no variable and adds no loss.
        with keras.StatelessScope(collect_losses=True):
            self._model(x)
        self._note(x)

    def _note(self, x):
        inputs = {}
        for name, tensor in private.graphs.named_inputs(self._model, x):
            for numbers, layer, dtype in roundings(self._model, tensor):
                names = inputs.setdefault(id(numbers), (numbers, layer, dtype, []))[-1]
                names.append(name)
        rows = [ops.zeros((2,))] * _SLOTS
        for numbers, layer, dtype, names in inputs.values():
            rounding = (*names,), layer, dtype
            slot = self._slots.setdefault(rounding, len(self._slots))
            if slot < _SLOTS:
                rows[slot] = ops.maximum(rows[slot], _extremes_of(numbers))
        if inputs:
            self._values.assign(ops.maximum(self._values, ops.stack(rows)))

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the names of inputs that are rounded too much, with a message."""
        with distribute.scope_of(self._model):
            copies = distribute.copies_of(self._values.value)
            values = ops.convert_to_numpy(ops.max(ops.stack(copies), axis=0)).tolist()
        for (names, layer, dtype), extremes in zip(self._slots, values, strict=False):
            if lost := _lost(dtype, *extremes):
                those = ", ".join(f"'{name}'" for name in names)
                yield (
                    names,
                    f"Input {those} of model '{self._model.name}' holds "
                    f"{extremes[0]:g}, and '{layer.name}' ({type(layer).__name__}) "
                    f"reads it in {dtype}, {lost}, put a "
                    "keras.layers.Normalization or Rescaling first, or keep that layer "
                    f"in float32: keras_mp.Policy(..., float32=['{layer.name}']).",
                )


def _extremes_of(values):
    """Return the largest absolute value, and the largest fractional part.

    Numbers that are infinite or NaN in float32 already do not count.
    """
    values = ops.cast(ops.reshape(values, (-1,))[:_NUMBERS], "float32")
    largest = ops.max(ops.abs(values), initial=0.0)
    part = ops.max(ops.abs(values - ops.round(values)), initial=0.0)
    both = ops.stack([largest, part])
    return ops.where(ops.isfinite(both), both, [0.0, 1.0])


def _lost(dtype, largest, part):
    """Return what ``dtype`` loses of such numbers, and what to do; None for nothing."""
    end, whole = _LIMITS[dtype]
    if largest > end:
        return f"which ends at {end:,.0f}: it becomes inf. Scale the data"
    if largest > whole and part == 0:
        return (
            f"which has every whole number up to {whole:,} only: ids become others. "
            "Give ids to a keras.layers.Embedding, scale what is no id"
        )
    return None
