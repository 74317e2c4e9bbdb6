"""Which variables overflowed, on which replica, each case in processes of its own."""

import contextlib
import functools
import json

import keras
import numpy as np
import pytest
from support.processes import on_two_replicas, strategy_here

pytestmark = pytest.mark.long

WAYS = ["eager", "graph", "accumulation", "summed"]


@pytest.fixture(params=["mirrored", "multi-worker"])
def counted(request):
    """Return what was counted by case, which must be the same in each process."""
    first, *others = on_two_replicas(request.param, __file__)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("way", WAYS)
def test_the_second_replica_overflows_in_one_variable(counted, way):
    assert counted[way]["by variable"] == {"kernel": [0, 2]}
    assert counted[way]["by replica"] == [0, 2]
    assert counted[way]["skipped"] == 2


@pytest.mark.parametrize("way", WAYS)
def test_good_steps_change_the_same_bits_with_and_without(counted, way):
    assert counted[way]["weights"] == counted[f"{way} untracked"]["weights"]


def test_a_sum_that_is_too_large_counts_for_all(counted):
    # 2e38 on each of two replicas; float32 ends at 3.4e38.
    assert counted["large sum"]["by variable"] == {"bias": [1, 1]}
    assert counted["large sum"]["by replica"] == [0, 0]


def test_parts_that_do_not_fit_float16_count_for_all(counted):
    assert counted["float16"]["by variable"] == {"bias": [1, 1]}


def test_each_replica_in_a_variable_of_its_own(counted):
    assert counted["both"]["by variable"] == {"kernel": [0, 1], "bias": [1, 0]}
    assert counted["both"]["by replica"] == [1, 1]


@pytest.mark.parametrize("steps", [1, 4])
def test_fit(counted, steps):
    fitted = counted[f"fit {steps}"]
    assert fitted["by variable"] == {"net/first/kernel": [0, 1]}
    assert fitted["skipped"] == 1


# What runs in the processes.


def cases(strategy):
    run = functools.partial(_run, strategy)
    ones, bad, large = (np.full(8, v, "f4") for v in (1.0, np.inf, 2e38))
    kernel, bias = (np.where(np.arange(8) < 6, *pair) for pair in [(bad, 1), (1, bad)])
    large_bias = np.where(np.arange(8) < 6, ones, large)
    good = (ones, ones)
    results = {}
    for way in WAYS:
        batches = [good, (ones, kernel), good, (ones, kernel), good, good]
        results[way] = run(way, batches)
        results[f"{way} untracked"] = run(way, batches, tracks=False)
    results["large sum"] = run("graph", [(large_bias, large_bias)])
    results["float16"] = run("graph", [good, (ones, large_bias)], wire="float16")
    results["both"] = run("graph", [(bias, kernel)])
    return results | {f"fit {steps}": _fit(strategy, steps) for steps in (1, 4)}


def _run(strategy, way, batches, *, tracks=True, wire=None):
    """Apply each of ``batches``, the scaled gradients of two replicas, and report."""
    import tensorflow as tf

    import keras_mp

    with strategy.scope():
        weights = [
            keras.Variable(np.zeros(size, "f4"), name=name)
            for name, size in (("kernel", (3, 2)), ("bias", (2,)))
        ]
        inner = keras.optimizers.Adam(
            gradient_accumulation_steps=2 if way == "accumulation" else None
        )
        optimizer = keras_mp.LossScaleOptimizer(inner, 8.0, all_reduce_dtype=wire)
        optimizer.build(weights)
    if tracks:
        optimizer.track_overflows()

    def apply(parts):
        context = tf.distribute.get_replica_context()
        part = parts[context.replica_id_in_sync_group]
        optimizer.scale_loss(1.0)
        gradients = [tf.reshape(part[:6], (3, 2)), part[6:]]
        optimizer.apply(gradients, weights, aggregate_gradients=way != "summed")

    def step(parts):
        strategy.run(apply, args=(parts,))

    step = step if way == "eager" else tf.function(step)
    for batch in batches:
        step(tf.constant(np.stack(batch), "float32"))
    return {"weights": [w.numpy().tolist() for w in weights], **_counts(optimizer)}


def _counts(optimizer):
    counts = {"by replica": optimizer.overflows_by_replica()}
    with contextlib.suppress(RuntimeError):
        counts["by variable"] = optimizer.overflows_by_variable()
    return {**counts, "skipped": optimizer.stats()["skipped"]}


def _fit(strategy, steps):
    """Fit a model whose first kernel overflows for rows of 60,000."""
    import tensorflow as tf

    import keras_mp

    small = keras.initializers.Constant(1e-3)
    with strategy.scope():
        layers = [
            keras.layers.Dense(2, name="first", kernel_initializer="identity"),
            keras.layers.Dense(1, name="last", kernel_initializer=small),
        ]
        model = keras.Sequential([keras.Input((2,)), *layers], name="net")
        keras_mp.compile(
            model,
            "adam",
            "mse",
            policy="mixed_float16",
            scaling=keras_mp.scaling.DynamicLossScale(initial_scale=8.0),
            steps_per_execution=steps,
        )
    model.optimizer.track_overflows()  # outside of the scope, as a callback does
    x, y = np.ones((64, 2), "float32"), np.ones((64, 1), "float32")
    x[12:16] = 6e4  # the second half of the second batch of eight
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).with_options(options)
    model.fit(data, verbose=0)
    return _counts(model.optimizer)


if __name__ == "__main__":
    print(json.dumps(cases(strategy_here())))
