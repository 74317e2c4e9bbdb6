"""Architectures of `keras.applications` with random weights, of a trained one's size.

They have statistics of BatchNormalization by which activations are of the size that
they have in a trained network; as they are made, those of a MobileNet die out below
1e-16.

EfficientNets are missing: with such weights they are chaotic in float32 too. Weights
that are off by 2**-11 of themselves change B0's logits by 1.6 of their RMS.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import applications

BATCH = 8


class Architecture(NamedTuple):
    build: Callable
    size: int = 32  # pixels
    options: dict = {}


ARCHITECTURES = {
    "MobileNetV2": Architecture(applications.MobileNetV2, options={"alpha": 0.35}),
    "ConvNeXtTiny": Architecture(applications.ConvNeXtTiny),
    "DenseNet121": Architecture(applications.DenseNet121),
    "InceptionV3": Architecture(applications.InceptionV3, size=75),
    "MobileNet": Architecture(applications.MobileNet, options={"alpha": 0.25}),
    "MobileNetV3Small": Architecture(applications.MobileNetV3Small),
    "NASNetMobile": Architecture(applications.NASNetMobile),
    "ResNet50": Architecture(applications.ResNet50),
    "ResNet50V2": Architecture(applications.ResNet50V2),
    "VGG16": Architecture(applications.VGG16),
    "Xception": Architecture(applications.Xception, size=71),
}
SMALLEST = "MobileNetV2"  # which CI has time for
CASES = [
    pytest.param(
        each,
        id=name,
        marks=pytest.mark.long if name == SMALLEST else pytest.mark.slow,
    )
    for name, each in ARCHITECTURES.items()
]


def images(size):
    """Images of 8 x 8 coloured squares, each image with a shade of its own."""
    random = np.random.default_rng(0)
    squares = random.uniform(0, 128, (BATCH, 8, 8, 3))
    shades = random.uniform(0, 127, (BATCH, 1, 1, 3))
    repeats = -(-size // 8)
    pixels = (squares + shades).repeat(repeats, axis=1).repeat(repeats, axis=2)
    return pixels[:, :size, :size].astype("float32")


def built(architecture, x):
    """Return a model in float32 whose logits for ``x`` are neither 0 nor huge."""
    model = architecture.build(
        weights=None,
        input_shape=x.shape[1:],
        classes=10,
        classifier_activation=None,
        **architecture.options,
    )
    set_statistics(model, x)
    return model


def set_statistics(model, x):
    """Have each BatchNormalization divide by the RMS of what it gets for ``x``.

    It subtracts nothing: what is left of nearly equal numbers would be their errors.
    """
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    tf.function(model)(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean = norm.moving_mean.numpy()
        norm.moving_variance.assign(norm.moving_variance + mean**2)
        norm.moving_mean.assign(np.zeros_like(mean))
