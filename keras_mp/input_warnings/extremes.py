"""The extremes of what is rounded, noted on the device, and what they become."""

import contextlib

import keras
import ml_dtypes
from keras import ops

from keras_mp import distribute, dtypes, private
from keras_mp.input_warnings.rounding import roundings

#: Roundings that are watched, and numbers of each that are looked at: on two CPU cores
#: one costs some 10 us a step, under XLA up to 80; four times as many numbers another
#: 30, and all those of large images milliseconds.
_SLOTS, _NUMBERS = 64, 2**14

# The largest number, and up to where every whole number is one.
_LIMITS = {
    dtype: (float(ml_dtypes.finfo(dtype).max), 2 ** (ml_dtypes.finfo(dtype).nmant + 1))
    for dtype in dtypes.LOW_PRECISION
}


class Extremes:
    """The largest number in what is rounded, and the largest part behind a point.

    Both are 0 for what has not been seen. They belong to ``fit``, not to the model, so
    that the model does not save them.
    """

    def __init__(self, model):
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

    def reset(self):
        """Forget what was seen."""
        with distribute.scope_of(self._model):
            self._values.assign(ops.zeros((_SLOTS, 2)))

    def note(self, x):
        """Take in the batch ``x``, in any structure, after the step that used it.

        A step that is not traced tells nothing of its casts. So the model's call is
        traced for it; of that only what is noted is computed. Whatever goes wrong
        here is no reason for a step to fail.
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
        for name, tensor in _named(self._model, x):
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

    def faults(self):
        """Yield the names of inputs that are lost on their reader, and what to do."""
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
    """Return the largest absolute value, and the largest part behind its point.

    A number that is infinite or NaN in float32 already does not count: 16 bits do not
    cause it.
    """
    values = ops.cast(ops.reshape(values, (-1,))[:_NUMBERS], "float32")
    largest = ops.max(ops.abs(values), initial=0.0)
    part = ops.max(ops.abs(values - ops.round(values)), initial=0.0)
    both = ops.stack([largest, part])
    return ops.where(ops.isfinite(both), both, [0.0, 1.0])


def _lost(dtype, largest, part):
    """Return what is lost of such numbers in ``dtype`` and what to do, or None."""
    end, whole = _LIMITS[dtype]
    if largest > end:
        return f"which ends at {end:,.0f}: it becomes inf. Scale the data"
    if largest > whole and part == 0:
        return (
            f"which has every whole number up to {whole:,} only: ids become others. "
            "Give ids to a keras.layers.Embedding, scale what is no id"
        )
    return None


def _named(model, x):
    """Yield the dense numbers in ``x`` by the name of the input that each is for."""
    if isinstance(x, dict):
        paths = keras.tree.flatten_with_path(x)
        pairs = [("/".join(map(str, path)), leaf) for path, leaf in paths]
    else:
        built = model.built and getattr(model, "inputs", None)
        names = [tensor.name for tensor in built or ()]
        leaves = keras.tree.flatten(x)
        if len(names) != len(leaves):
            names = map(str, range(len(leaves)))
        pairs = zip(names, leaves, strict=True)
    yield from ((name, leaf) for name, leaf in pairs if _is_dense_number(leaf))


def _is_dense_number(leaf):
    # Sparse and ragged tensors have no `__array__`.
    if not hasattr(leaf, "__array__"):
        return False
    dtype = keras.backend.standardize_dtype(leaf.dtype)
    return "int" in dtype or "float" in dtype
