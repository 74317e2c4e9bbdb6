"""Layers that compute with their weights keep float32 master weights."""

import keras
import numpy as np
from keras import layers

from keras_mp import policy_scope

X = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)


def test_spectral_normalization_rounds_no_master_weight():
    made = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(1)
        with policy_scope(policy):
            made.append(layers.SpectralNormalization(layers.Dense(5)))
        made[-1].build(X.shape)
    reference, layer = made
    for each in made:
        each(X, training=True)
    kernel = layer.layer.kernel.numpy()
    assert (kernel != kernel.astype("float16")).any()
    # Both computed it in float32, in the order that two graphs may choose.
    np.testing.assert_allclose(kernel, reference.layer.kernel, rtol=1e-5)
    assert layer(X).dtype == "float16"
