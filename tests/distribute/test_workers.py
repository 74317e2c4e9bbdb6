"""A measured loss scale: replicas and machines get the same, each case by itself."""

import json
import os
import sys

import keras
import numpy as np
import pytest
from support.processes import run_alone, run_workers, strategy_here

import keras_mp

pytestmark = pytest.mark.long

ROWS = 16
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
FIRST, SECOND = slice(0, ROWS // 2), slice(ROWS // 2, ROWS)
Y = np.full((ROWS, 1), 10.0, "float32")
UNEVEN = Y.copy()
UNEVEN[SECOND] *= 16  # and the gradients with it, about


def made(scaling=None):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.SGD(1e-6)
    policy = "mixed_float16"
    keras_mp.compile(model, optimizer, "mse", policy=policy, scaling=scaling)
    return model


def on_one_device(rows, y):
    """Return the scale that ``rows`` of the batch allow, on one of two replicas."""
    return 2 * keras_mp.calibrate_scale(made(), X[rows], y[rows])


@pytest.mark.parametrize("case", ["fit", "by hand"])
def test_replicas_get_what_the_first_one_measures(case):
    found = run_alone(__file__, case)
    assert found["scales"] == [on_one_device(FIRST, Y)] * 2
    assert found["applied"] == 1


def test_a_number_of_replicas_that_is_no_power_of_two():
    found = run_alone(__file__, "three")
    assert len(found["scales"]) == 3 and found["applied"] == 1


@pytest.mark.parametrize("case", ["fit", "by hand"])
def test_machines_get_the_smallest_scale_of_all(case):
    expected = on_one_device(SECOND, UNEVEN)
    assert expected < on_one_device(FIRST, UNEVEN)
    for found in run_workers(__file__, case):
        assert found == {"scales": [expected], "applied": 1}


def test_a_batch_that_is_not_finite_on_one_machine_ends_all():
    messages = [found["error"] for found in run_workers(__file__, "not finite")]
    assert "of another machine" in messages[0]
    assert "row 0 holds NaN" in messages[1]


# What runs in the processes.


def run(strategy, case):
    """Return the scale of each replica here after one step, and whether it was made."""
    x, y = X.copy(), UNEVEN if "TF_CONFIG" in os.environ else Y
    if case == "not finite":
        x[ROWS // 2] = np.nan
    with strategy.scope():
        model = made(None if case == "by hand" else "calibrate")
    if case == "by hand":
        mine = _share_of_this_machine()
        keras_mp.calibrate_scale(model, x[mine], y[mine])
    try:
        model.fit(_data(x, y), shuffle=False, verbose=0)
    except ValueError as error:
        return {"error": str(error)}
    scale = model.optimizer.dynamic_scale.value
    local = strategy.experimental_local_results(scale)
    applied = model.optimizer.stats()["applied"]
    return {"scales": [float(each) for each in local], "applied": applied}


def _share_of_this_machine():
    config = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
    return (FIRST, SECOND)[config["task"]["index"]]


def _data(x, y):
    import tensorflow as tf

    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(ROWS)
    return data.with_options(options)


if __name__ == "__main__":
    (CASE,) = sys.argv[1:]
    print(json.dumps(run(strategy_here(3 if CASE == "three" else 2), CASE)))
