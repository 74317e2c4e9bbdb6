"""Small models for `keras_mp.lint`, and what one of its checks finds in them."""

import keras
import numpy as np
from keras import layers, ops

import keras_mp

X = np.ones((8, 8), "float32")
LOW = {"dtype": "mixed_float16"}


def model_of(*inner, shape=(8,), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *inner], name="net")


def dense(units=8, activation=None, dtype="mixed_float16", **kwargs):
    return layers.Dense(units, activation, dtype=dtype, name="head", **kwargs)


def found(model, rule, batch_size=None):
    """Return what one check finds in ``model``."""
    return [f for f in keras_mp.lint(model, batch_size) if f.rule == rule]


def lines(findings):
    return [(f.severity, f.layer) for f in findings]


class Own(keras.Model):
    """Takes inputs in a dict, and computes its loss by a function."""

    def __init__(self):
        super().__init__(name="own", dtype="mixed_float16")
        self.head = dense()

    def call(self, inputs):
        return self.head(inputs["one"]) + self.head(inputs["other"])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_):
        return ops.mean(keras.losses.mean_squared_error(y, y_pred))


def own():
    model = Own()
    model({"one": X, "other": X})
    return model
