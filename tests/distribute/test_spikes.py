"""Spikes on two replicas, each case in processes of its own: one verdict for all."""

import functools
import json

import keras
import numpy as np
import pytest
from support.processes import on_two_replicas, strategy_here

pytestmark = pytest.mark.long

WAYS = ["eager", "graph", "accumulation", "summed"]
STEPS, PLANTED = 14, 10


@pytest.fixture(params=["mirrored", "multi-worker"])
def ran(request):
    """Return the results by case, which must be the same in each process."""
    first, *others = on_two_replicas(request.param, __file__)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("way", WAYS)
def test_a_spike_on_the_second_replica_is_skipped_on_all(ran, way):
    result = ran[way]
    assert result["unchanged"] == ([] if way == "accumulation" else [PLANTED])
    assert result["stats"]["spikes"] == 1
    assert result["stats"]["scale"] == 8.0
    for first, *others in result["copies"]:
        assert all(other == first for other in others)


def test_a_loss_that_rises_on_the_second_replica_only(ran):
    assert ran["loss"]["unchanged"] == [PLANTED]
    # The loss of a step is the mean over the replicas, whose parts add up to it.
    np.testing.assert_allclose(ran["loss"]["losses"][:3], 1.0, rtol=1e-6)


def test_fit(ran):
    assert ran["fit"]["spikes"] == 1
    assert ran["fit"]["applied"] == STEPS - 1


# What runs in the processes.


def cases(strategy):
    run = functools.partial(_run, strategy)
    return {
        **{way: run(way) for way in WAYS},
        "loss": run("graph", of_loss=True),
        "fit": _fit(strategy),
    }


def _run(strategy, way, *, of_loss=False):
    """Take steps, one of which is planted on replica 1, and report."""
    import tensorflow as tf

    import keras_mp

    accumulates = way == "accumulation"
    rule = keras_mp.SpikeRule(deviations=4.0, window=4 if accumulates else 6)
    with strategy.scope():
        weight = keras.Variable([1.0, 2.0])
        inner = keras.optimizers.SGD(
            0.01, gradient_accumulation_steps=2 if accumulates else None
        )
        optimizer = keras_mp.LossScaleOptimizer(inner, 8.0, skip_spikes=rule)
        optimizer.build([weight])

    def of_replica(factor):
        context = tf.distribute.get_replica_context()
        is_second = tf.cast(context.replica_id_in_sync_group == 1, "float32")
        factor = 1.0 + is_second * factor
        gradient = 8.0 * tf.ones(2) * (1.0 if of_loss else factor)
        if way == "summed":
            gradient = context.all_reduce("sum", gradient)
        optimizer.scale_loss((factor if of_loss else tf.ones(())) / 2.0)
        optimizer.apply([gradient], [weight], aggregate_gradients=way != "summed")

    def step(factor):
        strategy.run(of_replica, args=(factor,))

    step = step if way == "eager" else tf.function(step)
    unchanged = []
    for index in range(STEPS):
        before = weight.numpy()
        step(tf.constant(50.0 if index == PLANTED else 0.0))
        if np.array_equal(before, weight.numpy()):
            unchanged.append(index)
    copies = strategy.experimental_local_results
    return {
        "unchanged": [] if accumulates else unchanged,
        "stats": optimizer.stats(),
        "losses": optimizer._spikes._history.numpy()[0].tolist(),
        "copies": [
            [copy.numpy().tolist() for copy in copies(variable.value)]
            for variable in (weight, optimizer._spikes._counts)
        ],
    }


def _fit(strategy):
    import tensorflow as tf

    import keras_mp

    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = keras_mp.LossScaleOptimizer(
            keras.optimizers.SGD(0.01),
            8.0,
            skip_spikes=keras_mp.SpikeRule(deviations=4.0, window=6),
        )
        keras_mp.compile(model, optimizer, "mse", steps_per_execution=2)
    x = np.random.default_rng(0).normal(size=(8 * STEPS, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    y[8 * PLANTED + 4] += 1e3  # a row of the second replica
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(dataset.with_options(options), verbose=0)
    return model.optimizer.stats()


if __name__ == "__main__":
    print(json.dumps(cases(strategy_here())))
