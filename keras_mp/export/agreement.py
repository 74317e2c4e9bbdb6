"""Whether an exported file predicts as the model does in float32."""

import functools
import math
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mp.export import precision

# Allowed difference, as a share of the largest prediction. Kernels that sum in another
# order differ by 1e-7 to 1e-5, more in deep models. One rounding to float16 costs 5e-4,
# to bfloat16 4e-3.
TOLERANCE = 1e-4

# Not on a GPU, which multiplies in TF32 and so rounds like float16. TFLite runs on the
# CPU as well.
ON_CPU = functools.partial(tf.device, "CPU:0")

ROWS = 2
UNKNOWN_SIZE = 32  # Of an axis of any size; enough for five poolings by 2.


def inputs_for(specs: list[Any], sample: Any = None) -> list[Any]:
    """Return the inputs to compare predictions on, a structure for each argument.

    Args:
        specs: A list with a structure of `tf.TensorSpec` per argument.
        sample: The user's inputs, a tuple if there are several arguments; or None.

    Returns:
        Arrays in the structures and dtypes of ``specs``.

    Raises:
        ValueError: ``sample`` and ``specs`` have different structures.
    """
    if sample is None:
        generator = np.random.default_rng(0)
        return keras.tree.map_structure(lambda spec: _random(generator, spec), specs)
    arguments = list(sample) if len(specs) > 1 else [sample]
    flat, given = keras.tree.flatten(specs), keras.tree.flatten(arguments)
    if len(given) != len(flat):
        raise ValueError(
            f"keras_mp.export(..., sample=...) needs {len(flat)} arrays, because "
            f"the model's inputs are {specs}. Got {len(given)}. Pass what `call` "
            "takes, with a tuple around it if `call` takes several arguments."
        )
    arrays = [
        np.asarray(value, spec.dtype.as_numpy_dtype)
        for value, spec in zip(given, flat, strict=True)
    ]
    return keras.tree.pack_sequence_as(specs, arrays)


def _random(generator: np.random.Generator, spec: tf.TensorSpec) -> np.ndarray:
    sizes = [ROWS, *[UNKNOWN_SIZE] * (len(spec.shape) - 1)] if spec.shape else []
    shape = [size or other for size, other in zip(spec.shape, sizes, strict=True)]
    if spec.dtype.is_floating:
        # From 0 to 1, which suits images and ids that are given as floats.
        return generator.random(shape).astype(spec.dtype.as_numpy_dtype)
    if spec.dtype == tf.string:
        return np.full(shape, b"a", object)
    # 0 and 1 are in every vocabulary.
    return generator.integers(0, 2, shape).astype(spec.dtype.as_numpy_dtype)


def predictions(model: keras.Model, inputs: list[Any]) -> Any:
    """Return what ``model`` predicts on the CPU, as a structure of arrays.

    Raises:
        ValueError: The model fails on the inputs.
    """
    try:
        with ON_CPU():
            tensors = keras.tree.map_structure(tf.convert_to_tensor, inputs)
            outputs = precision.predict(model, tensors)
    except Exception as error:
        raise ValueError(
            f"keras_mp.export: model '{model.name}' raised the {type(error).__name__} "
            "above on the inputs to verify with. Pass sample=..., a batch of inputs "
            "that it can work with, or verify=False."
        ) from error
    return keras.tree.map_structure(np.asarray, outputs)


def checked(
    path: pathlib.Path, name: str, got: list[np.ndarray], expected: Any
) -> float:
    """Return the largest difference, as a share of the largest prediction.

    Args:
        path: The exported file, for the message.
        name: The name of its format.
        got: Its predictions, a list of arrays.
        expected: The model's predictions, a structure of arrays.

    Raises:
        ValueError: The difference is larger than ``TOLERANCE``.
    """
    expected = keras.tree.flatten(expected)
    differences = [
        difference(each, other) for each, other in zip(got, expected, strict=True)
    ]
    worst = max(differences, default=0.0)
    if not worst <= TOLERANCE:
        raise ValueError(
            f"keras_mp.export: the {name} for '{path}' does not predict as the "
            f"model does in float32: outputs differ by {worst:.1e} of the largest "
            f"one, and {TOLERANCE:.0e} is allowed. Nothing was saved. If random inputs "
            "mean nothing to the model, pass sample=...; if it draws random numbers, "
            "verify=False."
        )
    return worst


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest item of ``expected``.

    inf if shapes or dtypes differ, or if one has NaN or inf where the other has not.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(got, expected) else math.inf
    other = (got != expected) & ~(np.isnan(got) & np.isnan(expected))
    if not other.any():
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.abs(got - expected)[other].max() / np.nanmax(np.abs(expected))
    return float(share) if np.isfinite(share) else math.inf
