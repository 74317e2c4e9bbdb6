"""The matrix products of a layer with its weights, and their sizes."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_mp import guards, private

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


class Product(NamedTuple):
    """As many equal products as ``count`` with a matrix of these named ``sizes``."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    sizes: tuple[tuple[str, int], ...]

    def multiplications(self, multiple: int = 1) -> int:
        """Return how many a row takes, with sizes padded to ``multiple``."""
        return self.count * math.prod(pad(n, multiple) for _, n in self.sizes)


def pad(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def products_of(layer: keras.layers.Layer) -> Iterator[Product]:
    """Yield the products of ``layer`` with its weights, if it is a layer of Keras's.

    Of depthwise convolutions none: they are no matrix products.
    """
    if guards.covers_sublayers(layer):
        yield from filter(None, map(_projection, private.layers.sublayers(layer)))
    elif isinstance(layer, keras.layers.EinsumDense):
        yield _einsum(layer.equation, layer.kernel.shape)
    elif isinstance(layer, keras.layers.Dense):
        features, units = layer.kernel.shape
        yield Product(1, (("input features", features), ("units", units)))
    elif isinstance(layer, _CONVOLUTIONS):
        *area, channels, filters = layer.kernel.shape
        if layer.groups == 1 or channels > 1:
            yield _convolution(area, channels, filters // layer.groups, layer.groups)
    elif isinstance(layer, _TRANSPOSED):
        *area, filters, channels = layer.kernel.shape
        yield _convolution(area, channels, filters)
    elif isinstance(layer, _SEPARABLE):
        *area, channels, filters = layer.pointwise_kernel.shape
        yield _convolution(area, channels, filters)
    elif private.layers.is_of_keras(layer) and hasattr(layer, "recurrent_kernel"):
        *area, units, gates = layer.recurrent_kernel.shape
        count = math.prod(area) * (gates // units)
        for name, size in ("input features", layer.kernel.shape[-2]), ("units", units):
            yield Product(count, ((name, size), ("units", units)))


def _convolution(area, channels, filters, groups=1):
    each = " of a group" if groups > 1 else ""
    sizes = ((f"input channels{each}", channels), (f"filters{each}", filters))
    return Product(math.prod(area) * groups, sizes)


def _einsum(equation, shape):
    """Return the product of an einsum with a kernel of this ``shape``."""
    left, kernel, right = re.split(",|->", equation)
    axes = dict(zip(kernel, shape, strict=True))
    summed = math.prod(size for axis, size in axes.items() if axis not in right)
    made = math.prod(size for axis, size in axes.items() if axis not in left)
    count = math.prod(axes.values()) // (summed * made)
    return Product(count, (("input features", summed), ("output features", made)))


def _projection(layer):
    """Return the product of a part of attention, one for each head."""
    if layer.name in ("query", "key", "value"):
        features, heads, size = layer.kernel.shape
        name = "value dim" if layer.name == "value" else "key dim"
        return Product(heads, ((f"{layer.name} features", features), (name, size)))
    if layer.name == "attention_output":
        heads, size, *features = layer.kernel.shape
        sizes = (("value dim", size), ("output features", math.prod(features)))
        return Product(heads, sizes)
    return None
