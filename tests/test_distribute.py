"""Steps across replicas, each case in a process of its own with logical CPUs.

Collective keys leak from one strategy to the next within a process, and a wrong
collective hangs; hence the processes and the time-out.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

TIMEOUT = 240  # seconds; a case takes about 20 on two busy cores, a deadlock for ever


def run_case(case, replicas):
    """Run ``case`` on ``replicas`` logical CPUs and return what it printed as JSON."""
    command = [sys.executable, "-W", "ignore", __file__, case, str(replicas)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("clipping", ["none", "clipnorm", "global_clipnorm"])
def test_two_replicas_train_as_one(clipping):
    one, two = (run_case(f"train:{clipping}", replicas) for replicas in (1, 2))
    assert one["stats"] == two["stats"]
    for a, b in zip(one["weights"], two["weights"], strict=True):
        # The batch is summed in another order: a few roundings of float32.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_overflow_on_one_replica_skips_the_step_on_all():
    result = run_case("poison", 2)
    assert result["changed_by_clean_step"]
    assert result["changed_by_poisoned_step"] == []
    assert result["replicas_agree"]
    assert result["scales"] == [8.0, 4.0]
    assert result["skipped"] == 1


def test_keras_own_class_lets_one_replica_ruin_all():
    assert run_case("keras_poison", 2)["weights_are_nan"]


def test_keras_own_class_clips_each_replica_alone():
    one, two = (run_case("keras_clip", replicas)["weights"] for replicas in (1, 2))
    difference = max(
        np.abs(np.subtract(a, b)).max() for a, b in zip(one, two, strict=True)
    )
    assert difference > 1e-4  # ours stays within 1e-5


def test_apply_outside_a_replica_says_where_it_belongs():
    assert "strategy.run" in run_case("cross_replica", 2)["error"]


# What runs in the processes.


def _strategy(replicas):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def _model(keras, keras_mp, optimizer, policy, normalize):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(8, activation="relu")]
    if normalize:
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.25)]
    model = keras.Sequential([*layers, keras.layers.Dense(1, dtype="float32")])
    keras_mp.compile(
        model,
        optimizer,
        "mse",
        policy=policy,
        scaling=keras_mp.scaling.DynamicLossScale(initial_scale=8.0),
    )
    return model


def _data():
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    return x, x[:, :1] ** 2


def case_train(replicas, clipping):
    import keras

    import keras_mp

    clip = {} if clipping == "none" else {clipping: 0.05}
    with _strategy(replicas).scope():
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1, **clip)
        model = _model(keras, keras_mp, optimizer, "float32", normalize=False)
    model.fit(*_data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    weights = [weight.tolist() for weight in model.get_weights()]
    return {"weights": weights, "stats": model.optimizer.stats()}


def case_poison(replicas):
    import keras
    import tensorflow as tf

    import keras_mp

    strategy = _strategy(replicas)
    with strategy.scope():
        model = _model(keras, keras_mp, "adam", "mixed_float16", normalize=True)
    x, y = _data()

    def parts():
        variables = model.variables + model.optimizer.inner_optimizer.variables
        variables += model.metrics_variables
        local = {
            f"{i} {v.name}": strategy.experimental_local_results(v.value)
            for i, v in enumerate(variables)
        }
        return {k: [part.numpy().copy() for part in v] for k, v in local.items()}

    def changed(before, after):
        return [
            name
            for name in before
            if not all(map(np.array_equal, before[name], after[name]))
        ]

    def step(x, y):
        # Not `fit`, which would reset the metrics first.
        batch = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        model.train_function(iter(strategy.experimental_distribute_dataset(batch)))

    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    start = parts()
    scales = [model.optimizer.stats()["scale"]]
    step(x[8:16], y[8:16])
    clean = parts()
    poisoned = x[16:24].copy()
    poisoned[7] = 1e30  # in the half of the last replica
    step(poisoned, y[16:24])
    after = parts()
    trained = [v.name for v in model.trainable_variables]
    agree = all(
        all(np.array_equal(part, parts[0]) for part in parts)
        for name, parts in after.items()
        if name.split(" ", 1)[1] in trained
    )
    return {
        "changed_by_clean_step": changed(start, clean),
        "changed_by_poisoned_step": changed(clean, after),
        "replicas_agree": agree,
        "scales": [*scales, model.optimizer.stats()["scale"]],
        "skipped": model.optimizer.stats()["skipped"],
    }


def _keras_model(replicas, **clip):
    """Return a model under Keras's own class."""
    import keras

    with _strategy(replicas).scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        inner = keras.optimizers.SGD(0.1, **clip)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
        model.compile(optimizer, "mse")
    return model


def case_keras_poison(replicas):
    model = _keras_model(replicas)
    x, y = _data()
    x[7] = np.inf  # in the half of the last replica
    model.fit(x[:8], y[:8], batch_size=8, shuffle=False, verbose=0)
    return {"weights_are_nan": all(np.isnan(w).all() for w in model.get_weights())}


def case_keras_clip(replicas):
    model = _keras_model(replicas, clipnorm=0.05)
    model.fit(*_data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"weights": [weight.tolist() for weight in model.get_weights()]}


def case_cross_replica(replicas):
    import keras

    import keras_mp

    with _strategy(replicas).scope():
        weight = keras.Variable([1.0])
        optimizer = keras_mp.LossScaleOptimizer("sgd")
        try:
            optimizer.apply([keras.ops.array([1.0])], [weight])
        except ValueError as error:
            return {"error": str(error)}
    return {"error": ""}


if __name__ == "__main__":
    case, *arguments = sys.argv[1].split(":")
    result = globals()[f"case_{case}"](int(sys.argv[2]), *arguments)
    print(json.dumps(result))
