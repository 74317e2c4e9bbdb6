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


# Keras does not find it by the module that it names.
keras.saving.get_custom_objects()["MDN"] = keras_mdn_layer.MDN

CLIENTS = [
    Client(
        "MDN",
        "mixture density",
        _network,
        _regression,
        lambda: {"loss": keras_mdn_layer.get_mixture_loss_func(OUTPUTS, MIXTURES)},
    )
]
