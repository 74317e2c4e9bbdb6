"""The optimizer that a model needs, and the settings that it is given."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import scaling

DYNAMIC = scaling.DynamicLossScale()
CHECK = scaling.StaticLossScale(1.0)


def dense_model(dtype="mixed_float16"):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype=dtype)])


@pytest.mark.parametrize(
    ("dtype", "rule"),
    [("float32", None), ("mixed_bfloat16", CHECK), ("mixed_float16", DYNAMIC)],
)
def test_wrap_optimizer_gives_what_the_model_needs(dtype, rule):
    model = dense_model(dtype)
    optimizer = keras.optimizers.SGD()
    wrapped = keras_mp.wrap_optimizer(model, optimizer)
    assert (wrapped is optimizer) == (rule is None)
    assert getattr(wrapped, "scaling", None) == rule
    wrapped = keras_mp.wrap_optimizer(model, optimizer, scaling="dynamic")
    assert wrapped.inner_optimizer is optimizer and wrapped.scaling == DYNAMIC


def compiled(optimizer="sgd", **arguments):
    model = dense_model()
    keras_mp.compile(model, optimizer, "mse", **arguments)
    return model.optimizer


def test_what_a_skip_does_to_schedules_is_handed_on():
    assert compiled().on_skip == "hold"
    assert compiled(on_skip="advance").on_skip == "advance"
    model = dense_model()
    assert keras_mp.wrap_optimizer(model, "sgd", on_skip="advance").on_skip == "advance"


def test_an_optimizer_keeps_what_it_does_on_a_skip():
    advances = {"scaling": CHECK, "on_skip": "advance"}  # float16 adds a scale to it
    optimizer = keras_mp.LossScaleOptimizer("sgd", **advances)
    for given in ({}, {"on_skip": "advance"}):
        wrapped = compiled(optimizer, **given)
        assert (wrapped.on_skip, wrapped.scaling) == ("advance", DYNAMIC)


def test_float32_skips_no_step_and_is_left_alone():
    model = dense_model("float32")
    keras_mp.compile(model, "sgd", "mse", on_skip="advance")
    assert type(model.optimizer) is keras.optimizers.SGD


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_skip": "wait"}, "'hold' or 'advance'"),
        ({"on_skip": "advance", "guard": False}, "Leave out one"),
        (
            {"on_skip": "advance", "optimizer": keras_mp.LossScaleOptimizer("sgd")},
            "has on_skip='hold'",
        ),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        compiled(**arguments)


def test_a_schedule_ends_with_the_data(tmp_path):
    model = dense_model()
    to_zero = keras.optimizers.schedules.PolynomialDecay(0.1, 16, 0.0)
    optimizer = keras.optimizers.SGD(to_zero)
    keras_mp.compile(model, optimizer, "mse", on_skip="advance")
    x = np.ones((16, 4), "float32")
    x[3:6] = np.inf
    model.fit(x, np.zeros((16, 1)), batch_size=1, shuffle=False, verbose=0)
    assert model.optimizer.stats()["skipped"] == 3
    assert float(model.optimizer.learning_rate) == 0.0
    assert int(model.optimizer.iterations) == 13
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras").optimizer
    assert (loaded.on_skip, float(loaded.learning_rate)) == ("advance", 0.0)
