"""Layers that compute in float32 inside a low-precision model."""

from keras_mp.layers.float32 import Float32
from keras_mp.layers.island import Island
from keras_mp.layers.safe import (
    Activation,
    LayerNormalization,
    Softmax,
    UnitNormalization,
)

__all__ = [
    "Activation",
    "Float32",
    "Island",
    "LayerNormalization",
    "Softmax",
    "UnitNormalization",
]
