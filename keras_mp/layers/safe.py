"""Keras layers that lose accuracy or overflow in float16, as float32 islands.

Each is the Keras layer of the same name and takes its arguments and weights; it adds
``output_dtype``, None for the dtype around the layer or ``"float32"`` for a head.
"""

from typing import Any

import keras

from keras_mp.layers.island import Island
from keras_mp.saving import register


@register
class Softmax(Island, keras.layers.Softmax):
    """`keras.layers.Softmax`, computed in float32.

    Example:

    >>> head = Softmax(output_dtype="float32", dtype="mixed_float16")
    >>> keras.backend.standardize_dtype(head(keras.ops.zeros((1, 2))).dtype)
    'float32'
    """

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return self.handed_back(super().call(inputs, mask=mask))


@register
class Activation(Island, keras.layers.Activation):
    """`keras.layers.Activation`, such as ``"softmax"``, computed in float32.

    Example:

    >>> layer = Activation("softmax", dtype="mixed_float16")
    >>> keras.backend.standardize_dtype(layer(keras.ops.zeros((1, 2))).dtype)
    'float16'
    """

    def call(self, inputs: Any) -> Any:
        return self.handed_back(super().call(inputs))


@register
class LayerNormalization(Island, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization`, in float32 from its input to its output.

    Keras's own computes in float32 too, and rounds its output to float16; this one can
    hand it back in float32.

    Example:

    >>> layer = LayerNormalization(dtype="mixed_float16")
    >>> keras.backend.standardize_dtype(layer(keras.ops.ones((1, 4))).dtype)
    'float16'
    """

    def call(self, inputs: Any) -> Any:
        return self.handed_back(super().call(inputs))


@register
class UnitNormalization(Island, keras.layers.UnitNormalization):
    """`keras.layers.UnitNormalization`, computed in float32.

    In float16 the sum of squares overflows for 64 features of 300, which gives 0, and
    vanishes for features of 1e-4, which gives inf.

    Example:

    >>> layer = UnitNormalization(dtype="mixed_float16")
    >>> float(layer(keras.ops.full((1, 64), 300.0))[0, 0])
    0.125
    """

    def call(self, inputs: Any) -> Any:
        return self.handed_back(super().call(inputs))
