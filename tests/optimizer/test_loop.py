"""Loops of the user's own, which scale and unscale by themselves."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("way", ["scale_loss", "old names", "old names, clipped"])
def test_custom_loop(mode, way):
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=16.0
    )
    optimizer.build([weight])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight.value * 0.5)
            if way == "scale_loss":
                loss = optimizer.scale_loss(loss)
            else:
                loss = optimizer.get_scaled_loss(loss)
        grads = tape.gradient(loss, [weight.value])
        if way != "scale_loss":
            grads = optimizer.get_unscaled_gradients(grads)
        if way == "old names, clipped":
            grads, _ = tf.clip_by_global_norm(grads, 0.25)
        optimizer.apply_gradients(zip(grads, [weight], strict=True))

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    step()
    step()
    expected = 1.5 if way == "old names, clipped" else 1.0
    np.testing.assert_array_equal(weight.numpy(), [expected])
    assert optimizer.stats()["applied"] == 2


def test_unscaled_gradients_that_were_only_logged_do_not_confuse_the_next_step():
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=16.0
    )
    optimizer.get_unscaled_gradients([keras.ops.array([16.0])])
    optimizer.scale_loss(1.0)
    optimizer.apply([keras.ops.array([16.0])], [weight])
    np.testing.assert_array_equal(weight.numpy(), [1.0])


def test_forgotten_scale_loss_is_reported_once():
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer("sgd")
    with pytest.warns(UserWarning, match=r"without scale_loss\(\)") as caught:
        optimizer.apply([keras.ops.array([1.0])], [weight])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.apply([keras.ops.array([1.0])], [weight])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scaled_loss_is_at_least_float32(dtype):
    optimizer = keras_mp.LossScaleOptimizer("sgd", initial_scale=2.0**20)
    loss = optimizer.scale_loss(keras.ops.array(3.0, dtype=dtype))
    assert float(loss) == 3 * 2.0**20
    assert loss.dtype == ("float64" if dtype == "float64" else "float32")
