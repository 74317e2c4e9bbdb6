"""`OverflowMonitor` and `FlightRecorder` on two replicas, of one process and of two."""

import json
import tempfile
import warnings

import keras
import numpy as np
import pytest
from support.processes import on_two_replicas, strategy_here

pytestmark = pytest.mark.long

GLOBAL_BATCH, STEPS, BAD_STEP = 8, 6, 3


WHERE = ["net/first", "output", "forward", "overflow"]


@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
@pytest.mark.parametrize("way", ["plain", "several", "accumulation"])
def test_the_second_replica_alone(strategy, way):
    found = [each[way] for each in on_two_replicas(strategy, __file__)]
    reports = [report for each in found for report in each["reports"]]
    assert reports == [{"step": BAD_STEP, "replica": 1, "where": WHERE}]
    assert all(each["skipped"] == 1 for each in found)
    messages = [message for each in found for message in each["messages"]]
    (message,) = messages
    assert message.startswith(
        f"OverflowMonitor: step {BAD_STEP} skipped on replica 1: the output of first "
        "overflowed (forward). "
    )
    assert found[-1]["messages"] == messages  # of the second machine, if there are two


@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_the_machine_of_the_replica_writes_its_file(strategy):
    *others, last = [
        each["plain"]["files"] for each in on_two_replicas(strategy, __file__)
    ]
    assert last == [[BAD_STEP, 1, WHERE, [GLOBAL_BATCH // 2, 8]]]
    assert not any(others)


@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_training_is_the_same_with_and_without(strategy):
    for each in on_two_replicas(strategy, __file__):
        assert each["plain"]["state"] == each["alone"]["state"]


@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_a_growing_scale(strategy):
    found = [each["growing"] for each in on_two_replicas(strategy, __file__)]
    for each in found:
        assert each["expected"] + each["elsewhere"] == each["skipped"] > 1
        assert each["reports"] == each["messages"] == []
    assert sum(each["expected"] for each in found) >= found[0]["skipped"]


def test_only_the_sum_is_too_large():
    (found,) = on_two_replicas("mirrored", __file__)
    (report,) = found["sum"]["reports"]
    assert report["replica"] is None
    assert (
        "the sums over the replicas of the gradients of 'last/kernel'"
        in (found["sum"]["messages"][0])
    )


# What runs in the processes.


def cases(strategy):
    return {
        "plain": run(strategy),
        "alone": run(strategy, watched=False),
        "several": run(strategy, steps_per_execution=4),
        "accumulation": run(strategy, accumulates=True),
        "growing": run(strategy, fault=None, interval=2, scale=2.0**12),
        # Looked at on one machine.
        "sum": len(strategy.extended.worker_devices) > 1
        and run(strategy, fault="sum", wire="float16"),
    }


def run(
    strategy,
    *,
    watched=True,
    accumulates=False,
    interval=2000,
    scale=8.0,
    fault="replica",
    wire=None,
    steps_per_execution=1,
):
    from keras_mp.callbacks import FlightRecorder, OverflowMonitor

    keras.utils.set_random_seed(1)
    rule = keras_mp.scaling.DynamicLossScale(
        initial_scale=scale, growth_interval=interval
    )
    with strategy.scope():
        model = network(0.3 if fault else 0.0, 1e-6 if fault else 0.1)
        inner = keras.optimizers.SGD(
            1e-6, gradient_accumulation_steps=2 if accumulates else None
        )
        keras_mp.compile(
            model,
            keras_mp.LossScaleOptimizer(inner, rule, all_reduce_dtype=wire),
            ["mse", "mse"],
            policy="mixed_float16",
            steps_per_execution=steps_per_execution,
        )
    monitor, recorder = OverflowMonitor(), FlightRecorder(tempfile.mkdtemp())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(
            batches(fault),
            epochs=1 if fault else 5,
            verbose=0,
            callbacks=[monitor, recorder] if watched else [],
        )
    texts = [str(each.message) for each in caught]
    return {
        "reports": [
            {
                "step": each.step,
                "replica": each.replica,
                "where": list(each.culprits[0][:4]) if each.culprits else None,
            }
            for each in monitor.reports
        ],
        "files": list(map(written, recorder.files)),
        "expected": monitor.expected,
        "elsewhere": monitor.elsewhere,
        "skipped": monitor.skipped,
        "messages": [each for each in texts if each.startswith("OverflowMonitor")],
        "state": state(strategy, model),
    }


def written(file):
    found = keras_mp.flight.read(file)
    where = found.culprits[0][:4] if found.culprits else None
    shape = None if found.batch is None else found.batch.x.shape
    return found.step, found.replica, where, shape


def network(rate, weight):
    """Two outputs, as each loss of several has a metric, and BatchNormalization."""
    weights = keras.initializers.Constant(weight)
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(8, name="first", kernel_initializer="orthogonal")(
        inputs
    )
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    hidden = keras.layers.Dropout(rate, name="drop")(hidden)
    outputs = [
        keras.layers.Dense(1, name=name, kernel_initializer=weights)(hidden)
        for name in ("last", "other")
    ]
    return keras.Model(inputs, outputs, name="net")


def batches(fault):
    import tensorflow as tf

    random = np.random.default_rng(0)
    rows = GLOBAL_BATCH * STEPS
    x = np.tile(random.normal(size=(GLOBAL_BATCH, 8)), (STEPS, 1)).astype("float32")
    y = np.ones((rows, 1), "float32")
    end = GLOBAL_BATCH * BAD_STEP
    if fault == "replica":
        x[end - GLOBAL_BATCH // 2 : end] = 6e4
    if fault == "sum":
        y[end - GLOBAL_BATCH : end] = (
            3e4  # gradients fit float32, not the wire's float16
        )
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    data = tf.data.Dataset.from_tensor_slices((x, (y, y)))
    return data.batch(GLOBAL_BATCH).with_options(options)


def state(strategy, model):
    local = strategy.experimental_local_results
    return [
        copy.numpy().tolist()
        for variable in [*model.variables, *model.optimizer.variables]
        for copy in local(variable.value)
    ]


if __name__ == "__main__":
    import keras_mp

    print(json.dumps(cases(strategy_here())))
