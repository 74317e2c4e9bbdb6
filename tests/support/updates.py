"""Small variables and gradients for tests of one update."""

import keras
import numpy as np
import pytest

from keras_mp import scaling

#: A rule of each kind.
RULES = [
    scaling.DynamicLossScale(
        initial_scale=8.0, hysteresis=2, hysteresis_refill="clean"
    ),
    scaling.StaticLossScale(8.0),
    scaling.LogNormalLossScale(initial_scale=8.0),
]

#: For tests that call `apply` with gradients that they have scaled themselves.
DIRECT = pytest.mark.filterwarnings("ignore:LossScaleOptimizer.apply")


def variables():
    return [keras.Variable([1.0, 2.0, 3.0]), keras.Variable([[4.0], [5.0]])]


def gradients():
    """Return the next gradients; each test starts with the same ones."""
    return [np.random.normal(size=(3,)), np.random.normal(size=(2, 1))]


def scaled(optimizer, grads):
    """Return ``grads`` as a backward pass of the scaled loss would give them."""
    scale = optimizer.stats()["scale"]
    return [keras.ops.array(np.float32(g * scale)) for g in grads]


def values(variables):
    return [v.numpy().copy() for v in variables]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)
