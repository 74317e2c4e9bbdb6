"""`LossScaleOptimizer` refuses what it cannot be made of, and says why."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import scaling


@pytest.mark.parametrize(
    "positional",
    [
        (),
        (1024.0,),
        (1024.0, 100),
        (1024.0, 100, "scaler"),
        (1024,),
        (np.float32(1024.0),),
    ],
    ids=str,
)
def test_constructor_takes_keras_positional_arguments(positional):
    ours = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(), *positional)
    keras_own = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), *positional)
    assert ours.initial_scale == keras_own.initial_scale
    assert ours.dynamic_growth_steps == keras_own.dynamic_growth_steps
    if len(positional) == 3:
        assert ours.name == keras_own.name == "scaler"


@pytest.mark.parametrize("scale", [0.25, 2.0**30])
def test_initial_scale_beyond_the_usual_range_widens_it(scale):
    optimizer = keras_mp.LossScaleOptimizer("sgd", initial_scale=scale)
    assert optimizer.stats()["scale"] == scale


def test_inner_optimizer_by_name_and_config():
    by_name = keras_mp.LossScaleOptimizer("adam")
    assert isinstance(by_name.inner_optimizer, keras.optimizers.Adam)
    config = keras.optimizers.serialize(keras.optimizers.SGD(0.25))
    by_config = keras_mp.LossScaleOptimizer(config)
    assert float(by_config.inner_optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("sgd", scaling.StaticLossScale(2.0), 100), ValueError, "either a rule"),
        (("sgd", "loud"), ValueError, "not a loss-scale rule"),
        ((42,), TypeError, "needs a keras optimizer"),
        (("sgd", 0.0), ValueError, "above 0"),
        (("sgd", -1.0), ValueError, "above 0"),
        (("sgd", np.nan), ValueError, "above 0"),
        (("sgd", np.inf), ValueError, "above 0"),
        (("sgd", True), ValueError, "not a loss-scale rule"),
        (("sgd", 2.0, 0), ValueError, "growth_interval"),
        (("sgd", 2.0, 1.5), TypeError, "growth_interval"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        keras_mp.LossScaleOptimizer(*arguments)


@pytest.mark.parametrize(
    "wrapper", [keras_mp.LossScaleOptimizer, keras.optimizers.LossScaleOptimizer]
)
def test_wrapping_twice_is_refused(wrapper):
    wrapped = wrapper(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="scaled twice.*inner_optimizer"):
        keras_mp.LossScaleOptimizer(wrapped)


def test_inner_loss_scale_factor_is_not_dropped_silently():
    inner = keras.optimizers.SGD(loss_scale_factor=100.0)
    with pytest.warns(UserWarning, match=r"StaticLossScale\(100.0\)"):
        keras_mp.LossScaleOptimizer(inner)
