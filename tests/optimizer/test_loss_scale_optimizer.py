"""The rule under its two names, and the config."""

import keras
import numpy as np
import pytest
from support.updates import DIRECT, RULES, scaled

import keras_mp
from keras_mp import scaling


@DIRECT
def test_keras_names_for_the_rule_stay_settable():
    optimizer = keras_mp.LossScaleOptimizer("sgd")
    optimizer.initial_scale = 4.0
    optimizer.dynamic_growth_steps = 1
    assert float(optimizer.scale_loss(1.0)) == 4.0
    optimizer.apply(scaled(optimizer, [np.ones(1)]), [keras.Variable([1.0])])
    assert float(optimizer.dynamic_scale) == 8.0
    assert int(optimizer.step_counter) == 0


def test_setting_one_thing_keeps_the_rest_of_the_rule():
    rule = scaling.DynamicLossScale(initial_scale=8.0, growth_factor=4.0)
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    optimizer.dynamic_growth_steps = 5
    assert optimizer.scaling == scaling.DynamicLossScale(
        initial_scale=8.0, growth_factor=4.0, growth_interval=5
    )
    fixed = keras_mp.LossScaleOptimizer("sgd", scaling.StaticLossScale(2.0))
    with pytest.raises(AttributeError, match="no `initial_scale` to set"):
        fixed.initial_scale = 4.0
    assert fixed.scaling == scaling.StaticLossScale(2.0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_config_round_trip(rule):
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(0.25), rule)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is keras_mp.LossScaleOptimizer
    assert again.scaling == rule
    assert float(again.inner_optimizer.learning_rate) == 0.25


def test_config_with_keras_settings_loads_into_keras():
    optimizer = keras_mp.LossScaleOptimizer("sgd", 8.0, 5)
    config = optimizer.get_config()
    keras_own = keras.optimizers.LossScaleOptimizer.from_config(config)
    assert keras_own.initial_scale == 8.0
    assert keras_own.dynamic_growth_steps == 5
