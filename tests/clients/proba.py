"""keras-proba: variational layers, Gaussian processes, heads with an uncertainty."""

import keras
import keras_proba
import numpy as np

from . import data
from .client import Client

layers, losses = keras_proba.layers, keras_proba.losses


def _regression():
    x = data.rng().normal(size=(16, 4)).astype("float32")
    return x, x[:, :1] * 2 - 1


def _classes():
    x = data.rng().normal(size=(16, 4)).astype("float32")
    return x, np.arange(16) % data.CLASSES


def _network(*last):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, activation="relu"), *last]
    )


def _crossentropy():
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
    }


def _posterior(model):
    """Return the distribution of the weights: predictions draw from it."""
    return model.layers[-1].get_weights()


CLIENTS = [
    Client(
        "GaussianHead",
        "uncertainty",
        lambda: _network(layers.GaussianHead(1)),
        _regression,
        lambda: {"loss": losses.GaussianNLL()},
    ),
    Client(
        "MixtureGaussianHead",
        "uncertainty",
        lambda: _network(layers.MixtureGaussianHead(3)),
        _regression,
        lambda: {"loss": losses.MixtureGaussianNLL(1)},
    ),
    Client(
        "SpectralNormalization, RandomFeatureGaussianProcess",
        "uncertainty",
        lambda: _network(
            layers.SpectralNormalization(keras.layers.Dense(16)),
            layers.RandomFeatureGaussianProcess(data.CLASSES, return_gp_cov=False),
        ),
        _classes,
        _crossentropy,
    ),
    Client(
        "DenseFlipout",
        "variational",
        lambda: _network(layers.DenseFlipout(data.CLASSES)),
        _classes,
        _crossentropy,
        predict=_posterior,
        draws=True,
    ),
]
