"""What Keras keeps on a tensor, its mask and its logits, which casts drop."""

from typing import Any

import keras


def cast_with_mask(tensor: Any, dtype: str) -> Any:
    """Return ``tensor``, symbolic or not, cast, and the mask on it kept.

    `keras.ops.cast` drops the mask, and Keras 3.12 does so in its own casts too.
    """
    return with_mask_of(tensor, keras.ops.cast(tensor, dtype))


def with_mask_of(source: Any, tensor: Any) -> Any:
    """Return ``tensor`` with the mask that Keras keeps on ``source``, if any."""
    mask = getattr(source, "_keras_mask", None)
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def with_logits_of(source: Any, tensor: Any) -> Any:
    """Return ``tensor``, a cast of ``source``, with the logits that losses look for.

    Keras keeps on the result of a sigmoid or softmax what it was computed from.
    """
    logits = getattr(source, "_keras_logits", None)
    if logits is not None and not hasattr(tensor, "_keras_logits"):
        tensor._keras_logits = keras.ops.cast(logits, tensor.dtype)
    return tensor
