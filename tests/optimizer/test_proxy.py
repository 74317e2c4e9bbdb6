"""Settings and state are the inner optimizer's."""

import keras
import numpy as np
import pytest
from support.updates import DIRECT, assert_same, gradients, scaled, values, variables

import keras_mp


def test_settings_reach_the_inner_optimizer_both_ways():
    inner = keras.optimizers.AdamW(0.1, weight_decay=0.25, clipnorm=2.0)
    optimizer = keras_mp.LossScaleOptimizer(inner)
    assert (optimizer.weight_decay, optimizer.clipnorm) == (0.25, 2.0)
    assert (optimizer.beta_1, optimizer.epsilon) == (inner.beta_1, inner.epsilon)
    optimizer.weight_decay = 0.5
    optimizer.beta_1 = 0.75
    optimizer.clipnorm = None
    optimizer.learning_rate = 0.5
    assert (inner.weight_decay, inner.beta_1, inner.clipnorm) == (0.5, 0.75, None)
    assert float(inner.learning_rate) == 0.5
    with pytest.raises(AttributeError, match="'Adamw?W?' object has no attribute"):
        _ = optimizer.no_such_setting


@DIRECT
def test_excluded_variables_are_not_decayed():
    kernel = keras.Variable([1.0], name="kernel")
    bias = keras.Variable([1.0], name="bias")
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(0.5, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([keras.ops.array([0.0])] * 2, [kernel, bias])
    np.testing.assert_array_equal(kernel.numpy(), [0.75])  # 1 - 0.5 * 0.5
    np.testing.assert_array_equal(bias.numpy(), [1.0])


@DIRECT
def test_wrapping_a_built_optimizer_keeps_its_moments():
    weights = variables()
    inner = keras.optimizers.Adam(0.1)
    inner.apply([keras.ops.array(np.float32(g)) for g in gradients()], weights)
    before = values(inner.variables)
    optimizer = keras_mp.LossScaleOptimizer(inner)
    assert optimizer.built
    optimizer.build(weights)
    assert_same(before, values(inner.variables))
    optimizer.apply(scaled(optimizer, gradients()))
    assert int(optimizer.iterations) == 2
