"""Architectures of `keras.applications`: to mixed_float16, trained, saved, and back."""

import keras
import numpy as np
import pytest
from support.architectures import BATCH, CASES, built, images

import keras_mp

# Every layer rounds to 11 bits, and each architecture adds up some 20 to 400 of these
# errors. The largest error of a logit was 0.001 (VGG16) to 0.067 (MobileNetV3Small)
# of the logits' RMS.
NEAR = 0.1


@pytest.mark.parametrize("architecture", CASES)
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
