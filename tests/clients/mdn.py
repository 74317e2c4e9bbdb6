"""keras-mdn-layer: a mixture density network."""

import keras
import keras_mdn_layer
import numpy as np

from . import data
from .client import Client

OUTPUTS, MIXTURES = 2, 3


def _network():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(16, activation="tanh"),
            keras_mdn_layer.MDN(OUTPUTS, MIXTURES),
        ]
    )


def _regression():
    rng = data.rng()
    x = rng.normal(size=(16, 4)).astype("float32")
    return x, np.stack([x[:, 0] * 2, x[:, 1] - 1], axis=1)


LOSS = keras_mdn_layer.get_mixture_loss_func(OUTPUTS, MIXTURES)

# Keras does not find them by the modules that they name.
keras.saving.get_custom_objects().update(
    {"MDN": keras_mdn_layer.MDN, LOSS.__name__: LOSS}
)

CLIENTS = [
    Client("MDN", "mixture density", _network, _regression, lambda: {"loss": LOSS})
]
