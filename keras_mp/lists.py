"""Which layers compute in float32, which in low precision, and which follow: data.

Three lists, as PyTorch's autocast and TensorFlow's graph rewrite have them. A `Policy`
extends them by rules of its own, which come first.

A rule is a layer class, or a regular expression on names and paths (see
`keras_mp.Policy`), or a `When`: a class under a condition on one of its attributes.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import keras


class When(NamedTuple):
    """A rule: layers of a class whose attribute passes a test."""

    layer: type
    attribute: str
    test: Callable[[Any], bool]

    def matches(self, layer, attribute, value):
        """Return whether ``layer`` would match with ``value`` as ``attribute``."""
        right = attribute == self.attribute and isinstance(layer, self.layer)
        return right and bool(self.test(value))


def _layers(*names):
    """Return the classes of `keras.layers` by these names that this Keras has."""
    found = (getattr(keras.layers, name, None) for name in names)
    return tuple(filter(None, found))


#: Activation functions that overflow, or lose most of their digits, in 16 bits.
FLOAT32_FUNCTIONS = tuple(
    getattr(keras.activations, name)
    for name in ("exponential", "log_sigmoid", "log_softmax", "softmax", "softplus")
)


def is_float32_function(function):
    """Return whether ``function``, decorated or not, is one of them."""
    return callable(function) and inspect.unwrap(function) in FLOAT32_FUNCTIONS


def _interpolates(interpolation):
    return interpolation != "nearest"


#: Layers that compute in float32, and hand it on.
DENY = (
    *_layers("Softmax", "UnitNormalization"),
    When(keras.layers.Activation, "activation", is_float32_function),
    When(keras.layers.Dot, "normalize", bool),
)

#: The attributes that decide for some layers.
CONDITIONS = {rule.attribute for rule in DENY if isinstance(rule, When)}

#: Layers whose products run in low precision, on tensor cores.
ALLOW = _layers(
    "AdditiveAttention",
    "Attention",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "EinsumDense",
    "GRU",
    "GRUCell",
    "GroupQueryAttention",
    "LSTM",
    "LSTMCell",
    "MultiHeadAttention",
    "SeparableConv1D",
    "SeparableConv2D",
    "SimpleRNN",
    "SimpleRNNCell",
)

#: Layers that only move or compare numbers, and compute in the dtype that comes in;
#: in the widest, if several come in.
FOLLOW = _layers(
    "Add",
    "Average",
    "Concatenate",
    "Cropping1D",
    "Cropping2D",
    "Cropping3D",
    "Flatten",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GlobalMaxPooling3D",
    "Identity",
    "Maximum",
    "MaxPooling1D",
    "MaxPooling2D",
    "MaxPooling3D",
    "Minimum",
    "Multiply",
    "Permute",
    "ReLU",
    "RepeatVector",
    "Reshape",
    "Subtract",
    "ZeroPadding1D",
    "ZeroPadding2D",
    "ZeroPadding3D",
)


def matches(rule, layer, path):
    """Return whether one rule matches a layer.

    Args:
        rule: A layer class, a regular expression as a string, or a `When`.
        layer: The layer.
        path: Names of its containers and itself, joined by ``/``.
    """
    if isinstance(rule, When):
        has = hasattr(layer, rule.attribute)
        return has and rule.matches(
            layer, rule.attribute, getattr(layer, rule.attribute)
        )
    if inspect.isclass(rule):
        return isinstance(layer, rule)
    names = path.split("/")
    runs = (
        "/".join(names[start:end])
        for end in range(1, len(names) + 1)
        for start in range(end)
    )
    return any(re.fullmatch(rule, run) for run in runs)


def matches_any(rules, layer, path):
    """Return whether any of ``rules`` matches ``layer``, found under ``path``."""
    return any(matches(rule, layer, path) for rule in rules)
