"""Nested structures of tensors in another float dtype, with Keras's masks kept."""

from typing import Any

import keras

from keras_mp import dtypes, private


def cast_floats(structure: Any, dtype: str) -> Any:
    """Return ``structure`` with every float tensor cast to ``dtype``, masks kept.

    Integer and bool tensors, None and anything that is no tensor stay as they are.
    """

    def cast(leaf):
        if not dtypes.is_float(leaf):
            return leaf
        return private.tensors.cast_with_mask(leaf, dtype)

    return keras.tree.map_structure(cast, structure)


def widen(structure: Any) -> Any:
    """Return ``structure`` with float16 and bfloat16 tensors cast to float32."""

    def widened(leaf):
        if not dtypes.is_low(leaf):
            return leaf
        return private.tensors.cast_with_mask(leaf, "float32")

    return keras.tree.map_structure(widened, structure)
