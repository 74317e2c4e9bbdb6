"""The rule of spikes against NumPy, and its arguments."""

import keras
import numpy as np
import pytest
from keras import ops
from reference.spikes import Spikes as Reference

import keras_mp


def run(rule, steps):
    """Return which of ``steps``, each a verdict, a loss and a norm, are spikes."""
    state, found = rule.init(), []
    for finite, loss, norm in steps:
        values = ops.convert_to_tensor(
            [np.nan if loss is None else loss, norm], "float32"
        )
        spike = ops.logical_and(finite, rule.is_spike(state, values))
        usable = np.isfinite(norm) and (loss is None or np.isfinite(loss))
        enters = ops.logical_and(finite and usable, ops.logical_not(spike))
        state = rule.update(state, values, enters, spike)
        found.append(bool(spike))
    return found


def some_steps(count, *, seed):
    """Return steps among which some overflow, and some lie far above the others."""
    random = np.random.default_rng(seed)
    steps = []
    for _ in range(count):
        kind = random.choice(["good", "bad", "high", "no loss", "loss"], p=PARTS)
        loss, norm = random.uniform(0.9, 1.1, 2)
        if kind == "high":
            loss, norm = loss * random.choice([1, 9]), norm * random.choice([1, 9])
        loss = {"no loss": None, "loss": np.inf}.get(kind, loss)
        steps.append((kind != "bad", loss, np.nan if kind == "bad" else norm))
    return steps


PARTS = [0.74, 0.1, 0.1, 0.03, 0.03]


@pytest.mark.parametrize("window", [2, 5, 16])
@pytest.mark.parametrize("patience", [1, 2, 10])
def test_it_follows_the_reference(window, patience):
    rule = keras_mp.SpikeRule(3.0, window, patience)
    steps = some_steps(80, seed=window)
    reference = Reference(3.0, window, patience)
    expected = [reference.step(*step) for step in steps]
    assert run(rule, steps) == expected
    assert any(expected)


def test_a_constant_level_is_none_and_whatever_lies_above_is():
    rule = keras_mp.SpikeRule(window=100)
    # 0.1 is not exact: the mean of a hundred is off by some roundings.
    steps = [(True, 0.1, 0.1)] * 150 + [(True, 0.1, 0.2), (True, 0.2, 0.1)]
    assert run(rule, steps) == [False] * 150 + [True, True]


def test_what_lies_below_is_none():
    steps = [(True, 1.0 + i % 2 / 8, 1.0) for i in range(8)] + [(True, -99.0, 0.0)]
    assert not any(run(keras_mp.SpikeRule(window=8), steps))


def test_a_level_that_has_risen_for_good_becomes_the_new_one():
    rule = keras_mp.SpikeRule(window=4, patience=3)
    low = [(True, 1.0 + i / 100, 1.0) for i in range(4)]
    high = [(True, 5.0 + i / 100, 1.0) for i in range(4)]
    overflow = (False, np.inf, np.nan)
    steps = [*low, high[0], overflow, *high[:2], *high, (True, 50.0, 1.0)]
    #        the run of three goes on over the overflow, then the window fills anew
    expected = [False] * 4 + [True, False, True, True] + [False] * 4 + [True]
    assert run(rule, steps) == expected


def test_config_round_trip():
    rule = keras_mp.SpikeRule(deviations=4, window=64, patience=5)
    config = keras.saving.serialize_keras_object(rule)
    assert keras.saving.deserialize_keras_object(config) == rule
    assert rule.get_config() == {"deviations": 4.0, "window": 64, "patience": 5}
    assert keras_mp.SpikeRule() == keras_mp.SpikeRule(6.0, 128, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"deviations": 0}, ValueError, "a finite number above 0"),
        ({"deviations": float("inf")}, ValueError, "a finite number above 0"),
        ({"deviations": "6"}, TypeError, "a finite number above 0"),
        ({"window": 1}, ValueError, "2 or more"),
        ({"window": 2.5}, TypeError, "whole number"),
        ({"patience": 0}, ValueError, "whole number, 1 or more"),
    ],
)
def test_bad_arguments(arguments, error, message):
    (name,) = arguments
    with pytest.raises(error, match=rf"keras_mp.SpikeRule\({name}=.*{message}"):
        keras_mp.SpikeRule(**arguments)


@pytest.mark.parametrize("value", [6.0, "yes", 1])
def test_what_is_no_rule(value):
    with pytest.raises(TypeError, match="None, True, or a keras_mp.SpikeRule"):
        keras_mp.LossScaleOptimizer("sgd", skip_spikes=value)
