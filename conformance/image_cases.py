"""The layers that prepare images and sound."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from conformance.cases import Case, Given, calling, floats
from conformance.layer_cases import layer

_DRAWN = "what it draws depends on the dtype"


def _pixels(shape=(2, 8, 8, 3), top=255.0):
    return lambda random: Given(random.uniform(0, top, shape))


def _raw(shape):
    """Pixels of 16 bits, most of which float16 and bfloat16 do not have."""
    return lambda random: Given(random.choice([65535.0, 4097.0, 257.0], shape))


_IMAGES = {
    "ordinary": _pixels(),
    "dark": _pixels(top=1e-2),
    "unscaled": _raw((2, 8, 8, 3)),
}
_TRAINING = calling(_IMAGES, training=True)

# Each has one value to draw, so that it does the same in every dtype: all of them hold
# it.
_FIXED = {
    "RandomBrightness": dict(factor=(0.25, 0.25)),
    "RandomColorDegeneration": dict(factor=(0.5, 0.5)),
    "RandomGaussianBlur": dict(factor=1.0, kernel_size=3, sigma=(1.0, 1.0)),
    "RandomGrayscale": dict(factor=1.0),
    "RandomHue": dict(factor=(0.25, 0.25)),
    "RandomInvert": dict(factor=1.0),
    "RandomPosterization": dict(factor=4),
    "RandomRotation": dict(factor=(0.125, 0.125)),
    "RandomSaturation": dict(factor=(0.75, 0.75)),
    "RandomSharpness": dict(factor=(0.5, 0.5)),
    "RandomShear": dict(x_factor=(0.25, 0.25)),
    "RandomTranslation": dict(height_factor=(0.125, 0.125), width_factor=(0.25, 0.25)),
    "RandomZoom": dict(height_factor=(0.25, 0.25)),
}

# What each draws cannot be fixed.
_RANDOM = {
    "AugMix": {},
    "CutMix": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomColorJitter": dict(brightness_factor=0.2, contrast_factor=0.2),
    "RandomContrast": dict(factor=0.5),
    "RandomCrop": dict(height=5, width=5),
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomPerspective": {},
    "Solarization": dict(addition_factor=0.1, threshold_factor=0.5),
}

_LABELLED = ("CutMix", "MixUp")

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")


def _augmenting() -> Iterator[Case]:
    for name, config in _FIXED.items():
        yield layer(name, _TRAINING, differentiable=False, **config)
    for name, config in _RANDOM.items():
        scenarios = _TRAINING
        if name in _LABELLED:
            scenarios = {"ordinary": _labelled(255.0), "unscaled": _labelled(65535.0)}
        yield layer(name, scenarios, random=_DRAWN, differentiable=False, **config)
    for name in ("AutoContrast", "Equalization"):
        yield layer(name, _TRAINING, differentiable=False)
    yield layer(
        "ContrastLimitedAdaptiveHistogramEqualization",
        _TRAINING,
        differentiable=False,
        tile_grid_size=(2, 2),
    )


def _labelled(top):
    """Images with pixels up to ``top``, and labels."""

    def make(random):
        images = random.uniform(0, top, (2, 8, 8, 3))
        labels = np.eye(2, dtype="float32")
        return Given({"images": images, "labels": labels}, training=True)

    return make


def _boxed(random):
    """Images with boxes at coordinates that 16 bits do not have."""
    boxes = {"boxes": np.full((2, 3, 4), 4097.0), "labels": np.ones((2, 3))}
    images = random.choice([65535.0, 4097.0], (2, 8, 8, 3))
    return Given({"images": images, "bounding_boxes": boxes})


def _resizing() -> Iterator[Case]:
    shape = (1, 6, 6, 2)
    pixels = {**floats(shape), "pixels": _pixels(shape)}
    inputs = {**pixels, "unscaled": _raw(shape)}
    for interpolation in _INTERPOLATIONS:
        for name, scenarios, config in (
            ("UpSampling2D", pixels, dict(size=2)),
            ("Resizing", inputs, dict(height=4, width=9)),
        ):
            yield layer(
                name,
                scenarios,
                variant=interpolation,
                interpolation=interpolation,
                **config,
            )
    yield layer(
        "Resizing",
        {"ordinary": _pixels((1, 256, 256, 1))},
        variant="antialias",
        height=2,
        width=2,
        antialias=True,
    )
    yield layer("CenterCrop", inputs, height=3, width=3)
    yield layer(
        "Pipeline",
        inputs,
        make=lambda: keras.layers.Pipeline(
            [keras.layers.Rescaling(1 / 255), keras.layers.CenterCrop(3, 3)]
        ),
    )
    yield layer(
        "MaxNumBoundingBoxes",
        {"unscaled": _boxed},
        max_number=4,
        bounding_box_format="xyxy",
        differentiable=False,
    )


def _waves(shape):
    """Scenarios of sound, of which one has samples as a file of 16 bits has them."""

    def samples(random):
        return Given(random.integers(-32768, 32768, shape).astype(float))

    return {**floats(shape), "unscaled": samples}


def _sound() -> Iterator[Case]:
    waves = _waves((2, 1024))
    yield layer("MelSpectrogram", waves, fft_length=256, sequence_stride=128)
    waves = _waves((2, 1024, 1))
    for mode in ("log", "magnitude", "psd", "real", "angle"):
        yield layer("STFTSpectrogram", waves, variant=mode, mode=mode)


def image_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> "Resizing" in {case.name for case in image_cases()}
    True
    """
    return [*_augmenting(), *_resizing(), *_sound()]
