"""What a model's inputs lose where a layer reads them in 16 bits."""

import functools
import warnings

import keras
import ml_dtypes
import numpy as np

from keras_mp import lists, private

#: Rows of an array that are looked at.
_ROWS = 1024

# The largest number, and up to where every whole number is one.
_LIMITS = {
    dtype: (float(ml_dtypes.finfo(dtype).max), 2 ** (ml_dtypes.finfo(dtype).nmant + 1))
    for dtype in private.LOW_PRECISION
}


def check_in_fit(model: keras.Model) -> None:
    """Have ``model.fit`` call `check` on its data first."""
    if not hasattr(model.fit, "_keras_mp_checks"):
        model.fit = _checking(model, model.fit)


def _checking(model, fit):
    @functools.wraps(fit)
    def checking(x=None, *args, **kwargs):
        check(model, x)
        return fit(x, *args, **kwargs)

    checking._keras_mp_checks = True
    return checking


def check(model: keras.Model, x) -> None:
    """Warn of data that a layer of ``model`` rounds beyond recognition.

    Numbers beyond 65,504 are infinite in float16; and of whole numbers, such as ids,
    float16 has each up to 2,048 and bfloat16 up to 256. A layer that reads raw data
    reads both as they are, and so does any in float32.

    Args:
        model: A Functional, Sequential or subclassed model.
        x: Arrays or dense tensors in any structure, of which the first 1,024 rows are
            looked at; or a ``tf.data.Dataset`` of them, batched and no more, whose
            first batch is. Anything else passes: to look at what is shuffled, drawn or
            generated would change what comes after.

    Synchronises with the device if ``x`` is there.

    Example:

    >>> price = keras.Input((1,), name="price")
    >>> model = keras.Sequential([price, keras.layers.Dense(1)])
    >>> report = keras_mp.convert(model, "mixed_float16")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     check(model, np.array([[1e6]]))
    >>> "Input 'price'" in str(caught[0].message)
    True
    """
    low = {name: layer for name, layer in _readers(model) if layer is not None}
    if not low:
        return
    for name, values in _named(model, _first(x)):
        layer = low.get(name) or low.get(None)
        if layer is not None and values.dtype.kind in "iuf" and values.size:
            _warn_of(model, name, values, layer)


def _warn_of(model, name, values, layer):
    """Warn if ``layer`` reads ``values`` as other numbers."""
    dtype = layer.compute_dtype
    end, whole = _LIMITS[dtype]
    largest = float(np.max(np.abs(values)))
    if not np.isfinite(largest):
        return
    if largest > end:
        lost = f"which ends at {end:,.0f}: it becomes inf. Scale the data"
    elif largest > whole and np.all(values == np.round(values)):
        lost = (
            f"which has every whole number up to {whole:,} only: ids become others. "
            "Give ids to a keras.layers.Embedding, scale what is no id"
        )
    else:
        return
    warnings.warn(
        f"Input '{name}' of model '{model.name}' holds {largest:g}, and "
        f"'{layer.name}' ({type(layer).__name__}) reads it in {dtype}, {lost}, put a "
        "keras.layers.Normalization or Rescaling first, or keep that layer in float32: "
        f"keras_mp.Policy(..., float32=['{layer.name}']).",
        stacklevel=4,
    )


def _first(x):
    """Return the first rows of ``x`` as arrays, in the structure they come in."""
    if private.is_dataset_of_arrays(x):
        x = next(iter(x.take(1)), None)
        x = keras.utils.unpack_x_y_sample_weight(x)[0]
    return keras.tree.map_structure(_rows, x)


def _rows(leaf):
    # Sparse tensors have no `__array__`.
    if hasattr(leaf, "__array__") and len(leaf.shape) > 0:
        return np.asarray(keras.ops.convert_to_numpy(leaf[:_ROWS]))
    return None


def _named(model, x):
    """Yield the arrays in ``x`` by the name of the input that each is for."""
    if isinstance(x, dict):
        pairs = x.items()
    else:
        built = model.built and getattr(model, "inputs", None)
        names = [tensor.name for tensor in built or ()]
        leaves = keras.tree.flatten(x)
        if len(names) != len(leaves):
            names = map(str, range(len(leaves)))
        pairs = zip(names, leaves, strict=True)
    yield from ((name, leaf) for name, leaf in pairs if isinstance(leaf, np.ndarray))


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
