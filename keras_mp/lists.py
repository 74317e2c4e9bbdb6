"""Which layers compute in float32, which in low precision, and which follow: data.

Three lists, ``DENY``, ``ALLOW`` and ``FOLLOW``, as PyTorch's autocast and TensorFlow's
graph rewrite have them, and ``INSIDE``, of layers in low precision whose computation is
not. A `Policy` extends them by rules of its own, which come first.

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


def _found(module, *names):
    """Return what ``module`` has by these names: not every Keras has all."""
    return tuple(filter(None, (getattr(module, name, None) for name in names)))


def _layers(*names):
    return _found(keras.layers, *names)


#: Activation functions that overflow or lose most of their digits in 16 bits, and whose
#: results do so too: the small probabilities of a softmax, and exponentials.
FLOAT32_FUNCTIONS = _found(keras.activations, "exponential", "log_softmax", "softmax")

#: Activation functions that overflow or lose most of their digits on the way to results
#: that 16 bits hold.
INSIDE_FUNCTIONS = _found(
    keras.activations,
    "elu",
    "log_sigmoid",
    "selu",
    "softplus",
    "softsign",
    "sparsemax",
    "squareplus",
    "tanh_shrink",
)


#: Activation functions that change no number but to 0 or a bound.
_MOVING_FUNCTIONS = _found(
    keras.activations, "hard_shrink", "hard_tanh", "linear", "relu", "relu6"
)

#: TensorFlow's operations that overflow or lose most of their digits in 16 bits. A
#: function of unknown name that uses one computes in float32.
FLOAT32_OPERATIONS = frozenset(
    {
        "Acos",
        "Asin",
        "Cosh",
        "Cumprod",
        "Cumsum",
        "Elu",
        "Erfinv",
        "Exp",
        "Expm1",
        "L2Loss",
        "Log",
        "Log1p",
        "LogSoftmax",
        "Mean",
        "Ndtri",
        "Pow",
        "Prod",
        "Reciprocal",
        "Rsqrt",
        "Selu",
        "Sinh",
        "Softmax",
        "Softplus",
        "Softsign",
        "SquaredDifference",
        "Sum",
        "Tan",
    }
)

#: Operations of `keras.ops` likewise, by the names of their classes.
FLOAT32_OPS = frozenset(
    {
        "Arccos",
        "Arcsin",
        "Average",
        "Cosh",
        "Cumprod",
        "Cumsum",
        "Elu",
        "Erfinv",
        "Exp",
        "Exp2",
        "Expm1",
        "Log",
        "Log10",
        "Log1p",
        "Log2",
        "LogSigmoid",
        "LogSoftmax",
        "Logaddexp",
        "Logsumexp",
        "Mean",
        "Norm",
        "Normalize",
        "Power",
        "Prod",
        "Reciprocal",
        "Rsqrt",
        "Selu",
        "Sinh",
        "Softmax",
        "Softplus",
        "Softsign",
        "SparsePlus",
        "Sparsemax",
        "Squareplus",
        "Std",
        "Sum",
        "Tan",
        "TanhShrink",
        "Var",
    }
)


def is_float32_function(function):
    """Return whether ``function``, decorated or not, is in `FLOAT32_FUNCTIONS`."""
    return _is_one_of(FLOAT32_FUNCTIONS, function)


def is_steep_function(function):
    """Return whether ``function``, decorated or not, is in either of the two."""
    return _is_one_of(FLOAT32_FUNCTIONS + INSIDE_FUNCTIONS, function)


def is_activation(function):
    """Return whether ``function``, decorated or not, is an activation of Keras's."""
    return _is_one_of(_ACTIVATIONS, function)


def moves_only(function):
    """Return whether ``function`` changes no number but to 0 or a bound."""
    return _is_one_of(_MOVING_FUNCTIONS, function)


def _is_one_of(functions, function):
    return callable(function) and any(
        inspect.unwrap(function) is each for each in functions
    )


_ACTIVATIONS = tuple(filter(inspect.isfunction, vars(keras.activations).values()))


def _interpolates(interpolation):
    return interpolation != "nearest"


def _is_denied(layer):
    kept = layer.compute_dtype == "float32"
    return kept or matches_any(DENY, layer, layer.name)


#: Layers that read ids, and hand on rows of a table in low precision.
EMBEDDINGS = _layers("Embedding", "ReversibleEmbedding")

#: Layers that read data as it comes: ids, pixels, and numbers of any size. No container
#: around them rounds what goes in.
DATA = EMBEDDINGS + _layers(
    "AugMix",
    "AutoContrast",
    "CategoryEncoding",
    "CenterCrop",
    "ContrastLimitedAdaptiveHistogramEqualization",
    "CutMix",
    "Discretization",
    "Equalization",
    "HashedCrossing",
    "Hashing",
    "IntegerLookup",
    "MaxNumBoundingBoxes",
    "MelSpectrogram",
    "MixUp",
    "Normalization",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomCrop",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
    "Rescaling",
    "Resizing",
    "STFTSpectrogram",
    "Solarization",
)

#: Layers that compute in float32, and hand it on.
DENY = (
    *(layer for layer in DATA if layer not in EMBEDDINGS),
    *_layers("Softmax", "UnitNormalization"),
    When(keras.layers.Activation, "activation", is_float32_function),
    When(keras.layers.Dot, "normalize", bool),
    # It calls what its layer computes by, past the dtype policy.
    When(keras.layers.TimeDistributed, "layer", _is_denied),
)

#: Layers that compute in float32 inside, and hand on the dtype that came in: what they
#: add up, or its powers, is larger than what comes in and goes out; or some device has
#: no 16-bit kernel.
INSIDE = (
    *_layers(
        "AdaptiveAveragePooling1D",
        "AdaptiveAveragePooling2D",
        "AdaptiveAveragePooling3D",
        "AdaptiveMaxPooling3D",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "ELU",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "MaxPooling3D",
    ),
    When(keras.layers.UpSampling2D, "interpolation", _interpolates),
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

#: Layers that move or compare numbers, or add noise to them, and compute in the dtype
#: that comes in; in the widest, if several come in.
FOLLOW = _layers(
    "Add",
    "Average",
    "Concatenate",
    "Cropping1D",
    "Cropping2D",
    "Cropping3D",
    "Flatten",
    "GaussianNoise",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GlobalMaxPooling3D",
    "Identity",
    "Masking",
    "Maximum",
    "MaxPooling1D",
    "MaxPooling2D",
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


#: Layers that are one product with their weights.
PRODUCTS = _layers(
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "EinsumDense",
    "SeparableConv1D",
    "SeparableConv2D",
)

#: Losses of logits or probabilities, as classes.
LOGIT_LOSSES = _found(
    keras.losses,
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CTC",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "CategoricalHinge",
    "Dice",
    "Hinge",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "Tversky",
)

#: The same, as functions.
LOGIT_FUNCTIONS = _found(
    keras.losses,
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "categorical_hinge",
    "ctc",
    "dice",
    "hinge",
    "kl_divergence",
    "sparse_categorical_crossentropy",
    "squared_hinge",
    "tversky",
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
