"""What a model's inputs lose where a layer reads them in 16 bits."""

import functools

import keras
import ml_dtypes
from keras import ops

from keras_mp import distribute, lists, private, watching

#: Inputs that are watched, and numbers of each batch that are looked at: on two CPU
#: cores an input costs some 10 us a step, under XLA up to 80; four times as many
#: numbers another 30, and all those of large images milliseconds.
_SLOTS, _NUMBERS = 64, 2**14

# The largest number, and up to where every whole number is one.
_LIMITS = {
    dtype: (float(ml_dtypes.finfo(dtype).max), 2 ** (ml_dtypes.finfo(dtype).nmant + 1))
    for dtype in private.LOW_PRECISION
}


def watch(model: keras.Model) -> None:
    """Have ``model.fit`` warn of data that a layer rounds beyond recognition.

    Numbers beyond 65,504 are infinite in float16; and of whole numbers, such as ids,
    float16 has each up to 2,048 and bfloat16 up to 256. A layer that reads raw data
    reads both as they are, and so does any in float32.

    Every training step notes the extremes of its batch on the device: of the first
    16,384 numbers of each input, 64 inputs at the most. They are read, and so
    synchronise with it, after the first step of ``fit``, a few later ones and each
    epoch; an input is warned of once in a ``fit``. Wherever data comes from, arrays,
    datasets or Python, it is seen as it is used, and neither drawn nor changed. Under a
    strategy every machine warns of what its own replicas see. Sparse and ragged tensors
    pass.

    Args:
        model: A Functional, Sequential or subclassed model.

    Example:

    >>> import warnings
    >>> price = keras.Input((1,), name="price")
    >>> model = keras.Sequential([price, keras.layers.Dense(1)])
    >>> keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")  # watches it
    >>> one = keras.ops.ones((1, 1))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     history = model.fit(1e6 * one, one, verbose=0)
    >>> "Input 'price'" in str(caught[0].message)
    True
    """
    if not hasattr(model.train_step, "_keras_mp_notes_inputs"):
        extremes = _Extremes(model)
        model.train_step = _noting(model.train_step, extremes)
        watching.watch(model, "inputs", functools.partial(_begin, extremes))


def _noting(train_step, extremes):
    """Return ``train_step`` that notes the extremes of its batch."""

    @functools.wraps(train_step)
    def noting(data):
        extremes.note(keras.utils.unpack_x_y_sample_weight(data)[0])
        return train_step(data)

    noting._keras_mp_notes_inputs = True
    return noting


def _begin(extremes):
    """Return what yields the faults in ``extremes`` from now on, each input's once."""
    warned = set()
    extremes.reset()

    def look():
        for name, message in extremes.faults():
            if name not in warned:
                warned.add(name)
                yield message

    return look


class _Extremes:
    """The largest number in each input of a model, and the largest part behind a point.

    Both are 0 for what has not been seen. They belong to ``fit``, not to the model, so
    that the model does not save them.
    """

    def __init__(self, model):
        self.model = model
        self._slots = {}
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
        with distribute.scope_of(self.model):
            self._values.assign(ops.zeros((_SLOTS, 2)))

    def note(self, x):
        """Take in the batch ``x``, in any structure."""
        low = _low_readers(self.model)
        if not low:
            return
        seen = {}
        for name, values in _named(self.model, x):
            if name in low or None in low:
                slot = self._slots.setdefault(name, len(self._slots))
                if slot < _SLOTS:
                    seen[slot] = _extremes_of(values)
        if seen:
            rows = [seen.get(slot, ops.zeros((2,))) for slot in range(max(seen) + 1)]
            rows = ops.pad(ops.stack(rows), ((0, _SLOTS - len(rows)), (0, 0)))
            self._values.assign(ops.maximum(self._values, rows))

    def faults(self):
        """Yield the name of each input that is lost on its reader, and what to do."""
        low = _low_readers(self.model)
        with distribute.scope_of(self.model):
            copies = distribute.copies_of(self._values.value)
            values = ops.convert_to_numpy(ops.max(ops.stack(copies), axis=0)).tolist()
        for name, extremes in zip(self._slots, values, strict=False):
            layer = low.get(name) or low.get(None)
            if layer is not None and (lost := _lost(layer, *extremes)):
                yield (
                    name,
                    f"Input '{name}' of model '{self.model.name}' holds "
                    f"{extremes[0]:g}, and '{layer.name}' ({type(layer).__name__}) "
                    f"reads it in {layer.compute_dtype}, {lost}, put a "
                    "keras.layers.Normalization or Rescaling first, or keep that layer "
                    f"in float32: keras_mp.Policy(..., float32=['{layer.name}']).",
                )


def _extremes_of(values):
    """Return the largest absolute value, and the largest part behind its point.

    What is infinite or no number before any rounding is none of 16 bits' business.
    """
    values = ops.cast(ops.reshape(values, (-1,))[:_NUMBERS], "float32")
    largest = ops.max(ops.abs(values), initial=0.0)
    part = ops.max(ops.abs(values - ops.round(values)), initial=0.0)
    both = ops.stack([largest, part])
    return ops.where(ops.isfinite(both), both, [0.0, 1.0])


def _lost(layer, largest, part):
    """Return what ``layer`` makes of such numbers and what to do, or None."""
    end, whole = _LIMITS[layer.compute_dtype]
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
        pairs = x.items()
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


def _low_readers(model):
    """Return the layers that read inputs in 16 bits, by the input's name."""
    return {name: layer for name, layer in _readers(model) if layer is not None}


def _readers(model):
    """Yield the name of each input, and the layer that reads it in 16 bits, or None.

    The name is None for a model whose inputs are one structure of its own call.
    """
    if isinstance(model, keras.Sequential) and not model.built:
        reads = (layer for layer in model.layers if type(layer) not in lists.FOLLOW)
        first = next(reads, model)
        yield None, first if _rounds(first) else None
    elif not getattr(model, "inputs", None):
        yield None, model if _rounds(model) else None
    else:
        yield from ((tensor.name, _reader(model, tensor)) for tensor in model.inputs)


def _reader(model, tensor):
    """Return the first layer found that reads ``tensor`` in 16 bits, or None."""
    for layer, outputs in private.readers_of(model, tensor):
        inner = getattr(layer, "inputs", None)  # a subclassed model has none
        if isinstance(layer, keras.Model) and inner:
            found = next(filter(None, (_reader(layer, t) for t in inner)), None)
        elif type(layer) in lists.FOLLOW and not layer.autocast:
            found = next(filter(None, (_reader(model, t) for t in outputs)), None)
        else:
            found = layer if _rounds(layer) else None
        if found is not None:
            return found
    return None


def _rounds(layer):
    return layer.autocast and layer.compute_dtype in private.LOW_PRECISION
