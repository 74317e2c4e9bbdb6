"""The scale follows its rule, and every event is counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loss_scale import Dynamic as DynamicReference
from support.updates import DIRECT, scaled, variables

import keras_mp
from keras_mp import scaling


@DIRECT
def test_stats_count_every_event():
    weights = variables()
    rule = scaling.DynamicLossScale(initial_scale=8.0, growth_interval=2)
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    start = optimizer.stats()
    assert start == {
        "scale": 8.0,
        "steps": 0,
        "applied": 0,
        "skipped": 0,
        "consecutive_skipped": 0,
        "growths": 0,
        "backoffs": 0,
        "nonfinite_losses": 0,
    }
    for finite in [True, True, True, False, False]:
        grads = [np.full((3,), 1.0 if finite else np.nan), np.ones((2, 1))]
        optimizer.apply(scaled(optimizer, grads), weights)
    assert optimizer.stats() == {
        "scale": 4.0,
        "steps": 5,
        "applied": 3,
        "skipped": 2,
        "consecutive_skipped": 2,
        "growths": 1,
        "backoffs": 2,
        "nonfinite_losses": 0,
    }
    assert all(type(v) in (int, float) for v in optimizer.stats().values())


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.booleans(), min_size=1, max_size=30),
    interval=st.integers(1, 4),
    hysteresis=st.integers(1, 3),
)
@DIRECT
def test_scale_follows_the_reference(steps, interval, hysteresis):
    hyper = {
        "initial_scale": 64.0,
        "growth_interval": interval,
        "hysteresis": hysteresis,
        "min_scale": 2.0,
        "max_scale": 256.0,
    }
    reference = DynamicReference(**hyper)
    rule = scaling.DynamicLossScale(**hyper)
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    weight = keras.Variable([1.0])
    for finite in steps:
        optimizer.apply([keras.ops.array([1.0 if finite else np.inf])], [weight])
        reference.step(finite)
        assert optimizer.stats()["scale"] == reference.scale


@pytest.mark.parametrize("rule", ["static", "log_normal"])
@DIRECT
def test_other_rules_in_an_optimizer(rule):
    rules = {"static": scaling.StaticLossScale(128.0), "log_normal": "log_normal"}
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(1.0), rules[rule])
    weight = keras.Variable([1.0])
    optimizer.apply(scaled(optimizer, [np.array([0.25])]), [weight])
    np.testing.assert_array_equal(weight.numpy(), [0.75])
    # log-normal: 2 ** (16 - log2(0.25)), from the unscaled gradient.
    assert optimizer.stats()["scale"] == {"static": 128.0, "log_normal": 2.0**18}[rule]
    optimizer.apply([keras.ops.array([np.nan])], [weight])
    np.testing.assert_array_equal(weight.numpy(), [0.75])
    assert optimizer.stats()["skipped"] == 1


@pytest.mark.parametrize("mode", ["eager", "graph"])
@DIRECT
def test_overflow_at_the_floor_raises_if_asked(mode):
    rule = scaling.DynamicLossScale(initial_scale=2.0, on_floor="raise")
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    apply = tf.function(optimizer.apply) if mode == "graph" else optimizer.apply
    overflow = [keras.ops.array([np.inf])]
    apply(overflow)
    with pytest.raises(tf.errors.InvalidArgumentError, match="min_scale"):
        apply(overflow)
    np.testing.assert_array_equal(weight.numpy(), [1.0])
