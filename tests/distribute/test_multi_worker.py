"""Training by two real processes on loopback, under MultiWorkerMirroredStrategy.

A worker that takes another way than its peer waits for it for ever, or brings it down;
so every process has a deadline, and none outlives its test.
"""

import contextlib
import functools
import json
import os
import signal
import statistics
import sys
import time

import numpy as np
import pytest
from support import network
from support.processes import Forked, run_workers, workers

pytestmark = pytest.mark.long

WORKERS = 2
COUNTS_BYTES = sys.platform == "linux"
PATIENCE = 20  # seconds for a step that takes a tenth of one unless workers deadlock


@functools.cache
def results_of(case, *arguments):
    """Return what each worker reports of ``case``, which runs once."""
    return run_workers(__file__, case, *arguments)


def same_on_all(key, case="train"):
    """Return what every worker reports as ``key``, which must be the same."""
    first, *others = [result[key] for result in results_of(case)]
    assert all(other == first for other in others)
    return first


def test_the_poisoned_rows_are_worker_1s():
    assert [result["poisoned_rows"] for result in results_of("train")] == [0, 4]


@pytest.mark.parametrize("steps", [1, 2])
def test_fit_trains_and_validates(steps):
    fitted = same_on_all(f"fit {steps}")
    assert set(fitted["history"]) == {"loss", "mae", "val_loss", "val_mae"}
    assert all(np.isfinite(values).all() for values in fitted["history"].values())
    assert fitted["history"]["loss"][1] < fitted["history"]["loss"][0]
    assert np.isfinite(fitted["evaluated"]).all()
    assert fitted["predicted"] == 20


@pytest.mark.parametrize("steps", [1, 2])
def test_overflow_on_one_worker_skips_the_step_of_fit_on_all(steps):
    fitted = same_on_all(f"fit {steps}")
    assert fitted["before"] == {"scale": 8.0, "applied": 6, "skipped": 0}
    assert fitted["after"] == {"scale": 4.0, "applied": 7, "skipped": 1}
    assert fitted["overflows"] == [0, 1]
    assert fitted["finite"]


def test_steps_per_execution_change_no_bit():
    assert same_on_all("fit 1") == same_on_all("fit 2")


@pytest.mark.parametrize("way", ["graph", "eager"])
def test_overflow_on_one_worker_skips_the_step_of_a_loop_on_all(way):
    clean, poisoned, clean_again = same_on_all(f"loop {way}")
    assert poisoned["weights"] == clean["weights"] != clean_again["weights"]
    assert [step["scale"] for step in (clean, poisoned, clean_again)] == [8.0, 4.0, 4.0]


def test_killed_worker_and_its_peer_resume_as_if_nothing_had_been(tmp_path):
    with workers(__file__, "killed", str(tmp_path)) as (peer, victim):
        victim.wait()
        assert victim.returncode == -signal.SIGKILL
        # The peer waits for the victim, or has noticed: it cannot have finished.
        assert peer.returncode != 0
    resumed, other = results_of("resumed", str(tmp_path))
    assert resumed == other
    assert resumed["epochs"] == [2, 3]
    assert resumed["resumed"] == resumed["uninterrupted"]
    assert resumed["resumed"]["stats"]["growths"] == 4


@pytest.mark.skipif(not COUNTS_BYTES, reason="counts bytes as Linux does")
def test_what_crosses_the_network():
    """Bytes that the workers receive, per step and byte of float32 gradients.

    Among them is what they say to each other besides gradients; 0.02 bytes are 80 kB a
    step.
    """
    traffic = [result["traffic"] for result in results_of("train")]
    sums = {case: sum(worker[case] for worker in traffic) for case in traffic[0]}
    expected = {"float32": 2, "float16": 1, "bfloat16": 1}
    expected |= {f"{dtype}, every 4": bytes / 4 for dtype, bytes in expected.items()}
    assert sums == pytest.approx(expected, abs=0.02)


@pytest.mark.skipif(not COUNTS_BYTES, reason="counts bytes as Linux does")
def test_bytes_of_other_processes_are_not_counted():
    with (
        network.sent_to_itself(10_000),
        contextlib.closing(Forked("support.network")) as other,
    ):
        assert other.stdout.read() == "1000\n"


# Keras alone.


def test_keras_cannot_fit_on_several_workers():
    errors = [result["keras fit"] for result in results_of("train")]
    assert all("PerReplica" in error for error in errors), errors


def test_keras_own_class_does_not_survive_an_overflow_on_one_worker():
    with workers(__file__, "keras_loop") as processes:
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.errors()[-4000:]
        time.sleep(PATIENCE)
        assert [process.returncode for process in processes] != [0] * WORKERS


# What runs in the workers.


def _index():
    return json.loads(os.environ["TF_CONFIG"])["task"]["index"]


def _data(rows):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")
    return x, x[:, :1]


def _dataset(x, y, batch_size=8):
    """Return batches whose first half goes to worker 0, the second to worker 1."""
    import tensorflow as tf

    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return dataset.with_options(options)


def _poisoned(x):
    """Return ``x`` with worker 1's half of the first batch beyond float16."""
    x = x.copy()
    x[4:8] = 1e30
    return x


def _layers():
    import keras

    keras.utils.set_random_seed(0)
    return [
        keras.layers.Dense(4, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1, dtype="float32"),
    ]


def _model(strategy, steps=1, growth_interval=1000):
    import keras

    import keras_mp

    rule = keras_mp.scaling.DynamicLossScale(
        initial_scale=8.0, growth_interval=growth_interval
    )
    with strategy.scope():
        model = keras.Sequential(_layers())
        keras_mp.compile(
            model,
            keras.optimizers.Adam(0.05),
            "mse",
            policy="mixed_float16",
            metrics=["mae"],
            scaling=rule,
            steps_per_execution=steps,
        )
    return model


def _weights(model):
    """Return the trainable weights; BatchNorm statistics are each worker's own."""
    return [weight.numpy().tolist() for weight in model.trainable_weights]


def case_train(strategy):
    results = {"poisoned_rows": _poisoned_rows(strategy)}
    for steps in (1, 2):
        results[f"fit {steps}"] = _fit(strategy, steps)
    for way in ("graph", "eager"):
        results[f"loop {way}"] = _loop(strategy, way)
    if COUNTS_BYTES:
        results["traffic"] = {
            f"{dtype}, every 4" if steps else dtype: _bytes_per_byte(
                strategy, dtype, steps
            )
            for steps in (None, 4)
            for dtype in ("float32", "float16", "bfloat16")
        }
    # Last, because it leaves the workers out of step.
    return results | {"keras fit": _keras_fit(strategy)}


def _poisoned_rows(strategy):
    x, y = _data(8)
    dataset = strategy.experimental_distribute_dataset(_dataset(_poisoned(x), y))
    rows, _ = next(iter(dataset))
    (local,) = strategy.experimental_local_results(rows)
    return int((local.numpy()[:, 0] > 1e9).sum())


def _fit(strategy, steps):
    model = _model(strategy, steps)
    x, y = _data(20)  # three batches; the last has four rows
    # Nine rows: in the last batch worker 1 has none.
    history = model.fit(
        _dataset(x, y),
        epochs=2,
        verbose=0,
        validation_data=_dataset(x[:9], y[:9]),
    )
    before = model.optimizer.stats()
    model.fit(_dataset(_poisoned(x[:16]), y[:16]), verbose=0)
    after = model.optimizer.stats()
    kept = ("scale", "applied", "skipped")
    return {
        "history": history.history,
        "before": {name: before[name] for name in kept},
        "after": {name: after[name] for name in kept},
        "overflows": model.optimizer.overflows_by_replica(),
        "finite": bool(all(np.isfinite(w).all() for w in model.get_weights())),
        "weights": _weights(model),
        "evaluated": model.evaluate(_dataset(x, y), verbose=0),
        "predicted": len(model.predict(_dataset(x, y), verbose=0)),
    }


def _loop(strategy, way):
    import keras
    import tensorflow as tf

    import keras_mp

    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), *_layers()])
        optimizer = keras_mp.LossScaleOptimizer("adam", initial_scale=8.0)
        optimizer.build(model.trainable_variables)

    step = _step_of_loop(strategy, model, optimizer)
    step = tf.function(step) if way == "graph" else step
    clean, poisoned = _data(4), _data(4)
    if _index() == 1:
        poisoned = (np.full_like(poisoned[0], np.inf), poisoned[1])
    states = []
    for batch in (clean, poisoned, clean):
        step(*map(tf.constant, batch))
        states.append({"weights": _weights(model), "scale": optimizer.stats()["scale"]})
    return states


def _step_of_loop(strategy, model, optimizer):
    import tensorflow as tf

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) / WORKERS
            loss = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)

    return lambda x, y: strategy.run(replica_step, args=(x, y))


def _bytes_per_byte(strategy, dtype, accumulation_steps):
    """Return the bytes a step receives, over the bytes of its float32 gradients."""
    import keras
    import tensorflow as tf

    import keras_mp

    with strategy.scope():
        weight = keras.Variable(np.zeros((1000, 1000), "float32"))
        inner = keras.optimizers.SGD(gradient_accumulation_steps=accumulation_steps)
        optimizer = keras_mp.LossScaleOptimizer(
            inner, all_reduce_dtype=None if dtype == "float32" else dtype
        )
        optimizer.build([weight])

    def replica_step():
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(tf.square(weight.value - 1.0)))
        optimizer.apply(tape.gradient(loss, [weight.value]), [weight])

    step = tf.function(lambda: strategy.run(replica_step))
    steps = accumulation_steps or 1
    counts = []
    for _ in range(6):
        before = network.received()
        for _ in range(steps):
            step()
        weight.numpy()  # waits for the steps
        counts.append(network.received() - before)
    return statistics.median(counts) / steps / 4e6  # the first steps set things up


def _keras_fit(strategy):
    import keras

    with strategy.scope():
        model = keras.Sequential(_layers())
        model.compile("adam", "mse")
    try:
        model.fit(_dataset(*_data(8)), verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def case_keras_loop(strategy):
    import keras
    import tensorflow as tf

    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), *_layers()])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        optimizer.build(model.trainable_variables)
    step = tf.function(_step_of_loop(strategy, model, optimizer))
    x, y = _data(4)
    step(tf.constant(x), tf.constant(y))
    print("ready", flush=True)
    step(tf.constant(np.full_like(x, np.inf) if _index() else x), tf.constant(y))
    return [weight.sum().item() for weight in map(np.asarray, model.get_weights())]


# Four epochs of two steps each; in the third, worker 1 is killed.


def _train(strategy, *callbacks):
    model = _model(strategy, growth_interval=2)
    model.fit(_dataset(*_data(16)), epochs=4, verbose=0, callbacks=callbacks)
    moments = model.optimizer.inner_optimizer.variables
    return {
        "state": [_weights(model), [moment.numpy().tolist() for moment in moments]],
        "stats": model.optimizer.stats(),
    }


def _backup(folder):
    import keras

    return keras.callbacks.BackupAndRestore(f"{folder}/worker-{_index()}")


def case_killed(strategy, folder):
    import keras

    class Killer(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.stats()["steps"] == 5 and _index() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    return _train(strategy, _backup(folder), Killer())


def case_resumed(strategy, folder):
    import keras

    epochs = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epochs.append(epoch)
    )
    resumed = _train(strategy, _backup(folder), note)
    return {
        "resumed": resumed,
        "epochs": epochs,
        "uninterrupted": _train(strategy),
    }


if __name__ == "__main__":
    import tensorflow

    case, *arguments = sys.argv[1:]
    strategy = tensorflow.distribute.MultiWorkerMirroredStrategy()
    print(json.dumps(globals()[f"case_{case}"](strategy, *arguments)))
