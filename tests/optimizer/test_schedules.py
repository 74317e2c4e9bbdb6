"""What skipped steps do to a learning-rate schedule, on one device and two replicas."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parents[1]))

from support.gradients import RUNS
from support.processes import on_two_replicas, strategy_here

#: The gradients of the steps; the others are 1.
BAD = {1: np.inf, 3: np.nan, 4: -np.inf}
STEPS = 8


def halving():
    return keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)


def built(inner, on_skip, rule=4.0):
    weight = keras.Variable([8.0])
    optimizer = keras_mp.LossScaleOptimizer(inner, rule, on_skip=on_skip)
    optimizer.build([weight])
    optimizer.scale_loss(0.0)  # so that the gradients below are taken as scaled
    return weight, optimizer


def trained(inner, on_skip, mode="eager", bad=BAD):
    """Return the weight after each step, and the optimizer."""
    weight, optimizer = built(inner, on_skip)
    apply = RUNS[mode](optimizer.apply)
    weights = [weight.numpy()[0]]
    for step in range(STEPS):
        gradient = tf.constant([bad.get(step, 1.0)], "float32")
        apply([gradient * optimizer.dynamic_scale.value])
        weights.append(weight.numpy()[0])
    return weights, optimizer


#: By how much each step moves the weight: steps 1, 3 and 4 are skipped.
MOVED = {
    "hold": [1.0, 0.0, 0.5, 0.0, 0.0, 0.25, 0.125, 0.0625],
    "advance": [1.0, 0.0, 0.25, 0.0, 0.0, 2.0**-5, 2.0**-6, 2.0**-7],
}


@pytest.mark.parametrize("mode", RUNS)
@pytest.mark.parametrize("on_skip", MOVED)
def test_a_schedule_stands_still_or_moves_on(on_skip, mode):
    weights, optimizer = trained(keras.optimizers.SGD(halving()), on_skip, mode)
    np.testing.assert_array_equal(-np.diff(weights), MOVED[on_skip])
    assert int(optimizer.iterations) == 5
    expected = {"hold": 2.0**-5, "advance": 2.0**-8}[on_skip]
    assert float(optimizer.learning_rate) == expected


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_a_schedule_moves_on_with_two_replicas(strategy):
    for result in on_two_replicas(strategy, __file__):
        assert result == {**MOVED, "windows": WINDOWS}


CONSTANT = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 1.0)
INNER = {
    "adam": lambda: keras.optimizers.Adam(CONSTANT),
    "nadam": lambda: keras.optimizers.Nadam(CONSTANT),
    "adamw": lambda: keras.optimizers.AdamW(CONSTANT, weight_decay=0.1),
    "averages": lambda: keras.optimizers.SGD(
        CONSTANT, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "accumulation": lambda: keras.optimizers.Adam(
        CONSTANT, gradient_accumulation_steps=2
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_all_else_counts_updates_only(name):
    bad = {0: np.inf, **BAD}  # averages begin with the first update
    hold, one = trained(INNER[name](), "hold", "graph", bad)
    advance, two = trained(INNER[name](), "advance", "graph", bad)
    np.testing.assert_array_equal(hold, advance)
    for old, new in zip(one.variables, two.variables, strict=True):
        np.testing.assert_array_equal(old, new)


#: Windows of two close at micro-batches 2 and 6, when the data of one window and of
#: three windows have gone by.
WINDOWS = [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.125, 0.0]


def test_dropped_micro_batches_count_as_micro_batches():
    inner = keras.optimizers.SGD(halving(), gradient_accumulation_steps=2)
    weights, optimizer = trained(inner, "advance")
    np.testing.assert_array_equal(-np.diff(weights), WINDOWS)
    assert float(optimizer.learning_rate) == 2.0**-4  # after eight micro-batches


@pytest.mark.long
@pytest.mark.skipif(
    not importlib.util.find_spec("jax"), reason="Keras has stateless steps on JAX only"
)
def test_stateless_steps():
    done = subprocess.run(
        [sys.executable, __file__, "stateless"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == MOVED


def test_each_part_of_a_multi_optimizer_has_a_schedule():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    part = keras.optimizers.SGD(halving())
    weights, _ = trained(keras.optimizers.MultiOptimizer(lambda _: part), "advance")
    np.testing.assert_array_equal(-np.diff(weights), MOVED["advance"])


def test_spikes_are_skipped_steps_too():
    rule = keras_mp.SpikeRule(window=8)
    inner = keras.optimizers.SGD(halving())
    optimizer = keras_mp.LossScaleOptimizer(
        inner, 1.0, skip_spikes=rule, on_skip="advance"
    )
    weight = keras.Variable([0.0])
    for step in range(9):
        optimizer.scale_loss(0.0)
        optimizer.apply([tf.constant([100.0 if step == 8 else 1.0])], [weight])
    assert optimizer.stats()["spikes"] == 1
    assert float(optimizer.learning_rate) == 2.0**-9


def test_a_number_as_learning_rate_is_left_alone():
    weights, optimizer = trained(keras.optimizers.SGD(0.5), "advance")
    np.testing.assert_array_equal(-np.diff(weights), [0.5, 0, 0.5, 0, 0, 0.5, 0.5, 0.5])
    optimizer.learning_rate = 0.25
    assert float(optimizer.inner_optimizer.learning_rate) == 0.25


def test_it_is_saved_if_it_is_not_the_default():
    optimizer = keras_mp.LossScaleOptimizer("sgd", on_skip="advance")
    config = optimizer.get_config()
    assert type(optimizer).from_config(config).on_skip == "advance"
    assert "on_skip" not in keras_mp.LossScaleOptimizer("sgd").get_config()


def test_it_goes_on_from_a_checkpoint():
    _, optimizer = trained(keras.optimizers.SGD(halving()), "advance")
    store = {}
    optimizer.save_own_variables(store)
    _, other = built(keras.optimizers.SGD(halving()), "advance")
    other.load_own_variables(store)
    assert float(other.learning_rate) == float(optimizer.learning_rate)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="'hold' or 'advance'"):
        keras_mp.LossScaleOptimizer("sgd", on_skip="wait")


def moved_on_replicas(strategy, on_skip, **arguments):
    with strategy.scope():
        inner = keras.optimizers.SGD(halving(), **arguments)
        weight, optimizer = built(inner, on_skip)

    @tf.function
    def step(number):
        def in_replica():
            # Only one replica's gradient is bad; the sum over both is of halves.
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            bad = tf.reduce_any(tf.equal(number, list(BAD)))
            value = tf.where(tf.logical_and(bad, replica == 1), np.inf, 0.5)
            optimizer.apply([tf.reshape(value * optimizer.dynamic_scale.value, [1])])

        strategy.run(in_replica)

    weights = [weight.numpy()[0]]
    for number in range(STEPS):
        step(tf.constant(number))
        weights.append(weight.numpy()[0])
    return (-np.diff(weights)).tolist()


def moved_without_state(on_skip):
    weight, optimizer = built(keras.optimizers.SGD(halving()), on_skip)
    state = [variable.value for variable in optimizer.variables]
    place = [each is optimizer.dynamic_scale for each in optimizer.variables]
    values, moved = [weight.value], []
    for step in range(STEPS):
        before = values
        gradient = keras.ops.array([BAD.get(step, 1.0)]) * state[place.index(True)]
        values, state = optimizer.stateless_apply(state, [gradient], values)
        moved.append(float((before[0] - values[0])[0]))
    return moved


def main():
    if "stateless" in sys.argv:
        print(json.dumps({each: moved_without_state(each) for each in MOVED}))
        return
    strategy = strategy_here()
    results = {each: moved_on_replicas(strategy, each) for each in MOVED}
    windows = moved_on_replicas(strategy, "advance", gradient_accumulation_steps=2)
    print(json.dumps({**results, "windows": windows}))


if __name__ == "__main__":
    main()
