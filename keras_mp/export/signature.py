"""The inputs of an exported model: their names, shapes and dtypes."""

import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_mp import dtypes


def of(model: keras.Model, given: Any = None) -> list[Any]:
    """Return the inputs of ``model``: a list with a structure of specs per argument.

    Args:
        model: A Keras model under float32.
        given: What the user passed as ``input_signature``, or None.

    Returns:
        A list of structures of `tf.TensorSpec`, each with a name of its own.

    Raises:
        ValueError: The model does not know its inputs yet.
    """
    if given is None:
        found = _of_inputs(model) or _of_first_call(model)
    else:
        found = list(given) if isinstance(given, list | tuple) else [given]
    if not found:
        raise ValueError(
            f"keras_mp.export: model '{model.name}' is not built, so it has no inputs "
            "and no weights to export. Call or train it once first, or build it with "
            "its input's shape; if it knows no input after that, pass "
            "input_signature=[keras.InputSpec(shape=(None, ...), dtype='float32')]."
        )
    return _named(found)


def _of_inputs(model: keras.Model) -> list[Any] | None:
    """Return the symbolic inputs of a Functional or Sequential model, or None."""
    if getattr(model, "inputs", None) is None or not model.built:
        return None
    return [model.inputs[0] if isinstance(model, keras.Sequential) else model.input]


def _of_first_call(model: keras.Model) -> list[Any] | None:
    """Return the inputs that a model of another class was built for, or None."""
    config = model.built and model.get_build_config()
    if not config:
        return None
    shapes = config.get("shapes_dict") or {"inputs": config.get("input_shape")}
    return [_float32_specs(shape) for shape in shapes.values() if shape is not None]


def _float32_specs(shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {name: _float32_specs(shape) for name, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return keras.InputSpec(shape=(None, *shapes[1:]), dtype="float32")
    return [_float32_specs(shape) for shape in shapes]


def _named(structures: list[Any]) -> list[Any]:
    """Return ``structures`` with each leaf as a `tf.TensorSpec` with a unique name.

    Formats know an input by its name, and TensorFlow allows no `/` and `:` in it.
    """
    taken: set[str] = set()

    def spec(leaf: Any, *path: Any) -> tf.TensorSpec:
        name = getattr(leaf, "name", None) or "_".join(map(str, path)) or "input"
        name = re.sub(r"\W", "_", name)
        name = name if name[0].isalpha() else f"input_{name}"
        while name in taken:
            name += "_1"
        taken.add(name)
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                "keras_mp.export(..., input_signature=...) needs keras.InputSpec("
                "shape=..., dtype=...), in a list or a structure. Got "
                f"{leaf!r} of type {type(leaf).__name__}."
            )
        dtype = keras.backend.standardize_dtype(leaf.dtype or "float32")
        dtype = "float32" if dtype in dtypes.LOW_PRECISION else dtype
        return tf.TensorSpec(leaf.shape, dtype, name)

    return [_mapped(spec, structure) for structure in structures]


def _mapped(function: Callable[..., Any], structure: Any, *path: Any) -> Any:
    """Return ``structure`` with each leaf replaced by ``function(leaf, *path)``."""
    if isinstance(structure, dict):
        items = structure.items()
        return {key: _mapped(function, value, *path, key) for key, value in items}
    if isinstance(structure, list | tuple):
        pairs = enumerate(structure)
        return [_mapped(function, value, *path, index) for index, value in pairs]
    return function(structure, *path)
