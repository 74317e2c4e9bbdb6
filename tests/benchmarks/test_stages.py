"""Stages of a step: each does its work, and floors follow from bytes and bandwidth."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import stages

RESULT = {
    "model": "wide",
    "optimizer": "Adam",
    "bytes": 10**9,
    "bandwidth": 10e9,
    "seconds": dict.fromkeys(stages.STAGES, 0.002),
}


@pytest.mark.parametrize(
    "stage, optimizer, seconds",
    [
        ("check", "SGD", 0.1),
        ("update", "SGD", 0.3),
        ("update", "Adam", 0.7),
        ("step", "Adam", 0.8),
    ],
)
def test_floor_is_bytes_over_bandwidth(stage, optimizer, seconds):
    result = RESULT | {"optimizer": optimizer}
    assert stages.floor_seconds(result, stage) == pytest.approx(seconds)


def test_table_shows_medians_and_floors():
    lines = stages.table([RESULT]).splitlines()
    assert lines[0] == "| ms per step | wide, Adam |"
    assert "| check | 2.00 |" in lines and "| check, floor | 100.00 |" in lines
    assert len(lines) == 2 + len(stages.STAGES) + 3


@pytest.mark.long
def test_stages_are_those_of_the_table_and_work():
    weights = [keras.Variable(np.ones(shape, "float32")) for shape in [(3, 4), (4,)]]
    gradients = [tf.ones(weight.shape) for weight in weights]
    compiled = stages._stages(lambda: keras.optimizers.SGD(0.5), weights, gradients)
    assert set(compiled) == set(stages.STAGES)
    assert bool(compiled["check"]()) and bool(compiled["check, Keras"]())
    for stage in ("update, Keras", "update with unscaling"):
        before = weights[0].numpy()
        compiled[stage]()
        np.testing.assert_array_equal(weights[0].numpy(), before - 0.5)
    for stage in ("step, Keras", "step"):  # the gradients are divided by 2**15
        before = weights[0].numpy()
        compiled[stage]()
        np.testing.assert_array_equal(weights[0].numpy(), before - 2.0**-16)
