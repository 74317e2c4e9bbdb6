"""Small models for tests of policies, and which of their layers compute in float32."""

import re

import keras
import numpy as np
from keras import layers

from keras_mp import private

X = np.random.default_rng(0).normal(size=(4, 3, 4)).astype("float32")


@keras.saving.register_keras_serializable("policies")
class Loose(layers.Layer):
    """A composite layer that passes no dtype inside, so its layers take the global."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.make(None)

    def make(self, dtype):
        self.first = layers.Dense(4, name="first", dtype=dtype)
        self.second = layers.Dense(4, name="second", dtype=dtype)
        self.squash = layers.Activation("tanh", name="squash", dtype=dtype)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.squash(self.second(self.first(x)))


@keras.saving.register_keras_serializable("policies")
class Twice(Loose):
    """The same, written as Keras's own composite layers are."""

    def make(self, dtype):
        super().make(self.dtype_policy)


@keras.saving.register_keras_serializable("policies")
class Scale(layers.Dense):
    """A registered custom layer, for class rules."""


def stack():
    return [
        layers.Dense(4, name="body"),
        layers.Dense(2, name="head"),
        layers.Activation("gelu", name="top"),
    ]


def sequential():
    return keras.Sequential([keras.Input((3, 4)), *stack()], name="model")


def functional():
    inputs = outputs = keras.Input((3, 4))
    for layer in stack():
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="model")


def custom_layer(block=Twice):
    block = block(name="block")
    return keras.Sequential(
        [keras.Input((3, 4)), block, layers.Dense(2, name="head")], name="model"
    )


def in_float32(model):
    """Return the paths below ``model`` of the layers that compute in float32.

    Attention layers number their nameless softmax within the session: softmax_1, ...
    """
    return {
        re.sub(r"/softmax_\d+$", "/softmax", path.split("/", 1)[1])
        for layer, path in private.layers.with_paths(model)
        if layer.compute_dtype == "float32"
        and layer is not model
        and not isinstance(layer, keras.layers.InputLayer | keras.Model)
        # A dropout of rate 0, which attention layers hold and never call.
        and not isinstance(layer, layers.Dropout)
    }
