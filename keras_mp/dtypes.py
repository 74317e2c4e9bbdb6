"""Which dtypes are of low precision, and what a tensor or a layer has."""

from typing import Any

import keras
from keras import ops

#: The dtypes of 16 bits in which mixed precision computes.
LOW_PRECISION = ("float16", "bfloat16")


def dtype_of(tensor: Any) -> str:
    """Return the dtype of ``tensor`` by its standard name."""
    return keras.backend.standardize_dtype(tensor.dtype)


def is_float(tensor: Any) -> bool:
    """Return whether ``tensor`` is a tensor, symbolic or not, of a float dtype."""
    is_tensor = ops.is_tensor(tensor) or isinstance(tensor, keras.KerasTensor)
    return is_tensor and keras.backend.is_float_dtype(tensor.dtype)


def is_low(tensor: Any) -> bool:
    """Return whether ``tensor`` is a tensor of float16 or bfloat16."""
    return is_float(tensor) and dtype_of(tensor) in LOW_PRECISION


def computes_low(layer: Any) -> bool:
    """Return whether ``layer`` computes in float16 or bfloat16."""
    return layer.compute_dtype in LOW_PRECISION


def checked_float_dtype(owner: str, dtype: Any) -> str | None:
    """Return ``dtype``, the argument ``output_dtype`` of ``owner``, by its full name.

    Raises:
        ValueError: It is neither None nor a float dtype.
    """
    if dtype is None:
        return None
    try:
        standard = keras.backend.standardize_dtype(dtype)
    except (TypeError, ValueError):  # TypeError of what cannot be hashed
        standard = None
    if standard is None or not keras.backend.is_float_dtype(standard):
        raise ValueError(
            f"{owner}(output_dtype={dtype!r}): `output_dtype` must be None, to hand "
            "back the dtype around the layer, or a float dtype such as 'float32'."
        )
    return standard
