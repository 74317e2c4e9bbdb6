"""Layers by how they compute under a low-precision policy."""

from keras import layers

from keras_mp.precision_lists.functions import is_float32_function
from keras_mp.precision_lists.rules import When, matches_any
from keras_mp.precision_lists.sources import Source, listed, listed_rules


def _interpolates(interpolation):
    return interpolation != "nearest"


def _is_denied(layer):
    in_float32 = layer.compute_dtype == "float32"
    return in_float32 or matches_any(DENY, layer, layer.name)


#: Layers that read ids, and hand on rows of a table in low precision.
EMBEDDINGS = listed(
    layers,
    {
        Source.KERAS: (
            "Embedding",
            "ReversibleEmbedding",
        ),
    },
)

_OTHER_DATA = listed(
    layers,
    {
        Source.KERAS: (
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
        ),
    },
)

#: Layers that read data as it comes: ids, pixels, and numbers of any size. No container
#: around them rounds what goes in.
DATA = EMBEDDINGS + _OTHER_DATA

#: Layers that compute in float32, and hand it on.
DENY = (
    _OTHER_DATA
    + listed(layers, {Source.TORCH: ("Softmax", "UnitNormalization")})
    + listed_rules(
        {
            When(layers.Activation, "activation", is_float32_function): Source.TORCH,
            When(layers.Dot, "normalize", bool): Source.TORCH,
            # It calls what its layer computes by, past the dtype policy.
            When(layers.TimeDistributed, "layer", _is_denied): Source.KERAS,
        },
    )
)

#: The attributes that decide for some layers.
CONDITIONS = {rule.attribute for rule in DENY if isinstance(rule, When)}

#: Layers that compute in float32 inside, and hand on the dtype that came in: what they
#: add up, or its powers, is larger than what comes in and goes out; or some device has
#: no 16-bit kernel.
INSIDE = listed(
    layers,
    {
        Source.COMPOSED: (
            "AdaptiveAveragePooling1D",
            "ELU",
            "GlobalAveragePooling1D",
            "GlobalAveragePooling2D",
            "GlobalAveragePooling3D",
        ),
        Source.MEASURED: (
            "AdaptiveAveragePooling2D",
            "AdaptiveAveragePooling3D",
            "AdaptiveMaxPooling3D",
            "AveragePooling1D",
            "AveragePooling2D",
            "AveragePooling3D",
            "MaxPooling3D",
        ),
    },
) + listed_rules(
    {When(layers.UpSampling2D, "interpolation", _interpolates): Source.MEASURED},
)

#: Layers that are one product with their weights.
PRODUCTS = listed(
    layers,
    {
        Source.TORCH: (
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
        ),
    },
)

#: Layers whose products run in low precision, on tensor cores.
ALLOW = PRODUCTS + listed(
    layers,
    {
        Source.TORCH: (
            "AdditiveAttention",
            "Attention",
            "ConvLSTM1D",
            "ConvLSTM2D",
            "ConvLSTM3D",
            "GRU",
            "GRUCell",
            "GroupQueryAttention",
            "LSTM",
            "LSTMCell",
            "MultiHeadAttention",
            "SimpleRNN",
            "SimpleRNNCell",
        ),
    },
)

#: Layers that move or compare numbers, or add noise to them, and compute in the dtype
#: that comes in; in the widest, if several come in.
FOLLOW = listed(
    layers,
    {
        Source.TENSORFLOW: (
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
        ),
        Source.KERAS: ("GaussianNoise",),
    },
)
