"""Architectures of `keras.applications`: to mixed_float16, trained, saved, and back.

They have random weights, and statistics of BatchNormalization by which activations are
of the size that they have in a trained network; as they are made, those of a MobileNet
die out below 1e-16.

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

import keras_mp

# Every layer rounds to 11 bits, and each architecture adds up some 20 to 400 of these
# errors. The largest error of a logit was 0.001 (VGG16) to 0.067 (MobileNetV3Small)
# of the logits' RMS.
NEAR = 0.1

BATCH = 8


class Architecture(NamedTuple):
    build: Callable
    size: int = 32  # pixels
    options: dict = {}


QUICK = {
    "MobileNetV2": Architecture(applications.MobileNetV2, options={"alpha": 0.35}),
}
SLOW = {
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


@pytest.mark.parametrize(
    "architecture",
    [
        *(pytest.param(each, id=name) for name, each in QUICK.items()),
        *(
            pytest.param(each, id=name, marks=pytest.mark.slow)
            for name, each in SLOW.items()
        ),
    ],
)
def test_converts_trains_saves_loads_and_agrees_with_float32(architecture, tmp_path):
    x, y = images(architecture.size), np.arange(BATCH)
    model = built(architecture, x)
    in_float32 = model.predict_on_batch(x)
    keras_mp.compile(
        model,
        keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        policy="mixed_float16",
    )
    assert error(model.predict_on_batch(x), in_float32) < NEAR

    before = model.get_weights()
    train(model, x, y, steps=2)
    weights = model.get_weights()
    assert all(np.isfinite(weight).all() for weight in weights)
    assert not any(map(np.array_equal, before, weights))

    predicted = model.predict_on_batch(x)
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x), predicted)

    keras_mp.convert(loaded, "float32")
    for weight, same in zip(weights, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert error(predicted, loaded.predict_on_batch(x)) < NEAR


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


def train(model, x, y, steps):
    """Train until ``steps`` were applied; the first ones may find the scale too large.

    ResNet50's gradients fit at 64, 9 halvings below the first scale.
    """
    for _ in range(steps + 12):
        if model.optimizer.stats()["applied"] == steps:
            break
        model.train_on_batch(x, y)
    stats = model.optimizer.stats()
    assert stats["applied"] == steps
    assert stats["scale"] == 2.0 ** (15 - stats["skipped"])


def error(predictions, wanted):
    """Return the largest error, in units of the RMS of what is wanted."""
    return np.abs(predictions - wanted).max() / np.sqrt(np.mean(wanted**2))
