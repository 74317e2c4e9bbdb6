"""Thousands of steps with random overflows beside the NumPy reference.

The whole trajectory of the scale is the reference's, the weights are those of the good
steps alone, memory is flat, and nothing is traced anew. Each run has a process of its
own: of one device, of two replicas, and of ``fit``.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parents[1]))

from reference.loss_scale import Dynamic
from support.damage import Outcome
from support.processes import run_alone, strategy_here

import keras_mp

#: Shares of steps whose gradients are not finite, each for an equal part of the steps;
#: the last part has bursts of up to 30 instead.
RATES = (0.001, 0.01, 0.1, 0.5)
RULES = {
    "plain": {"growth_interval": 25},
    "hysteresis": {
        "growth_interval": 10,
        "hysteresis": 3,
        "hysteresis_refill": "clean",
        "min_scale": 8.0,
    },
}
#: A float16 gradient of 1 overflows from this scale on.
TOO_LARGE = 2.0**16

OVERFLOWS = "Steps whose gradients hold inf or NaN, on one replica or on all"

KINDS = ["device", "replicas", "fit"]


def check(result):
    """Compare a run with what is expected of it."""
    assert result["scales that differ"] == 0
    assert result["counts"] == result["expected counts"]
    assert result["values that differ"] == []
    assert result["traced anew"] == 0
    assert result["skipped"] > result["steps"] / 10


def outcome_of(result):
    """Return the `Outcome` of the steps whose gradients were not finite."""
    lost = tuple(result["values that differ"])
    lost += ("scales",) if result["scales that differ"] else ()
    skipped = result["skipped"]
    return Outcome(skipped, 0 if lost else skipped, lost)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_steps(kind, check_faults):
    for result in run_alone(__file__, kind, "1000"):
        check_faults(OVERFLOWS, outcome_of(result))
        check(result)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_steps(kind, check_faults):
    for result in run_alone(__file__, kind, "20000"):
        check_faults(OVERFLOWS, outcome_of(result))
        check(result)
        # An object of each step that stays, of 500 bytes with what Python and
        # TensorFlow keep of it, would be 8 MB in the 16,000 steps that are looked at.
        # On replicas TensorFlow's all-reduce keeps up to 2 KB of a step, whoever asks.
        assert result["grown by MB"] - result.get("Keras by MB", 0) < 8, result


# What runs in the processes.


def poison(steps, replicas):
    """Return what is added to a gradient of each step and replica: 0, inf or NaN."""
    random = np.random.default_rng(0)
    part = np.arange(steps) * (len(RATES) + 1) // steps
    bad = random.random(steps) < np.array([*RATES, 0.0])[part]
    for start in np.flatnonzero(part == len(RATES))[::60]:
        bad[start : start + random.integers(1, 31)] = True
    values = random.choice([np.nan, np.inf, -np.inf], size=(steps, replicas))
    # On one of the replicas, or on all.
    where = random.integers(0, replicas + 1, size=(steps, 1))
    whose = (where == np.arange(replicas)) | (where == replicas)
    return np.where(bad[:, None] & whose, values, 0.0).astype("float32")


def gradients(replicas):
    """Return 16 gradients of 60 numbers for each replica, none at the same place.

    They are few eighths, and always a 1 among them: exact in float16 at each scale, and
    so are their sums in any order.
    """
    random = np.random.default_rng(1)
    values = random.integers(-7, 8, size=(16, replicas, 60)).astype("float32") / 8
    values *= np.arange(60) % replicas == np.arange(replicas)[:, None]
    values[..., : 2 * replicas] = np.repeat(np.eye(replicas), 2, axis=1)
    return values


class Trained:
    """Two weights under an optimizer, and the function of a step."""

    def __init__(self, strategy, inner, rule):
        replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            self.weights = [keras.Variable(np.zeros(30, "float32")) for _ in range(2)]
            self.optimizer = keras_mp.LossScaleOptimizer(inner(2.0**-10), rule)
            self.optimizer.build(self.weights)
        table = tf.constant(gradients(replicas))

        def in_replica(place, poison):
            own = tf.distribute.get_replica_context().replica_id_in_sync_group
            scaled = self.optimizer.scale_loss(table[place][own])
            parts = tf.split(tf.cast(scaled, "float16"), 2)
            parts[1] += tf.cast(poison[own], "float16")
            self.optimizer.apply([tf.cast(part, "float32") for part in parts])

        @tf.function
        def step(place, poison):
            strategy.run(in_replica, (place, poison))

        self.function = step

    def step(self, number, poison):
        self.function(tf.constant(number % 16), tf.constant(poison))

    def state(self):
        variables = [*self.weights, *self.optimizer.inner_optimizer.variables]
        return [np.asarray(each.numpy()) for each in variables]


def rule(name, **options):
    return keras_mp.scaling.DynamicLossScale(**RULES[name], **options)


class Followed:
    """The reference beside an optimizer: what its steps are to do, and what they did.

    Args:
        optimizer: A `LossScaleOptimizer`.
        reference: A reference of its rule.
    """

    def __init__(self, optimizer, reference):
        self._optimizer, self._reference = optimizer, reference
        self.good, self.scales, self._overflows, self._differ = [], [], 0, 0

    def step(self, poison):
        """Follow a step that was made.

        Args:
            poison: What was added to the gradients of each replica.
        """
        before = self._reference.scale
        overflows = ~np.isfinite(poison) | (before >= TOO_LARGE)
        self._overflows = self._overflows + overflows
        self.good.append(not overflows.any())
        self.scales.append(float(before))
        self._reference.step(self.good[-1])
        scale = self._optimizer.stats()["scale"]
        self._differ += scale != self._reference.scale

    def report(self):
        scales = np.array([*self.scales, self._reference.scale])
        applied = int(np.sum(self.good))
        expected = {
            "applied": applied,
            "skipped": len(self.good) - applied,
            "growths": int(np.sum(scales[1:] > scales[:-1])),
            "backoffs": int(np.sum(scales[1:] < scales[:-1])),
            "overflows": self._overflows.tolist(),
        }
        counts = self._optimizer.stats()
        counts["overflows"] = self._optimizer.overflows_by_replica()
        return {
            "steps": len(self.good),
            "skipped": expected["skipped"],
            "scales that differ": int(self._differ),
            "expected counts": expected,
            "counts": {name: counts[name] for name in expected},
        }


class Watch:
    """How much memory grew, and what was traced, after a fifth of the steps.

    By then, the allocators hold what they need for a step.
    """

    def __init__(self, steps, traced):
        self._steps, self._traced = steps, traced
        self.grown = self.anew = 0

    def step(self, number):
        if number == self._steps // 5:
            self._memory, self._first = memory(), self._traced()
        elif number == self._steps - 1:
            self.grown = memory() - self._memory
            self.anew = self._traced() - self._first

    def report(self):
        return {"grown by MB": round(self.grown, 1), "traced anew": self.anew}


def memory():
    """Return what this process holds, in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def different(pairs):
    return [name for name, pair in pairs.items() if not np.array_equal(*pair)]


def run_sgd(strategy, steps):
    """Train with plain SGD; NumPy adds up the good gradients, all of it exact."""
    added = poison(steps, strategy.num_replicas_in_sync)
    trained = Trained(strategy, keras.optimizers.SGD, rule("plain"))
    followed, watch = followed_through(trained, "plain", added)
    places = np.flatnonzero(followed.good) % 16
    total = gradients(strategy.num_replicas_in_sync).sum(axis=1, dtype="float64")
    weights = np.concatenate([each.numpy() for each in trained.weights])
    expected = -(2.0**-10) * total[places].sum(axis=0)
    same = different({"weights": (weights, expected)})
    return {**followed.report(), **watch.report(), "values that differ": same}


def run_adam(strategy, steps):
    """Train with Adam, and with another Adam in the good steps only."""
    added = poison(steps, strategy.num_replicas_in_sync)
    trained = Trained(strategy, keras.optimizers.Adam, rule("hysteresis"))
    followed, watch = followed_through(trained, "hysteresis", added)
    fixed = keras_mp.scaling.StaticLossScale(8.0)
    again = Trained(strategy, keras.optimizers.Adam, fixed)
    for number in np.flatnonzero(followed.good):
        again.step(int(number), np.zeros_like(added[0]))
    pairs = zip(trained.state(), again.state(), strict=True)
    same = different(dict(enumerate(pairs)))
    return {**followed.report(), **watch.report(), "values that differ": same}


def run_keras(strategy, steps):
    """Return how much memory Keras's optimizer alone takes in as many steps."""
    with strategy.scope():
        weight = keras.Variable(np.zeros(60, "float32"))
        sgd = keras.optimizers.SGD(2.0**-10)
        sgd.build([weight])

    @tf.function
    def step(number):
        strategy.run(lambda number: sgd.apply([tf.ones(60) * number]), (number,))

    watch = Watch(steps, lambda: 0)
    for number in range(steps):
        step(tf.constant(float(number)))
        watch.step(number)
    return {"Keras by MB": watch.report()["grown by MB"]}


def followed_through(trained, name, added):
    """Make all steps; return what followed them."""
    followed = Followed(trained.optimizer, Dynamic(**RULES[name]))
    watch = Watch(len(added), trained.function.experimental_get_tracing_count)
    for number, of_replicas in enumerate(added):
        trained.step(number, of_replicas)
        followed.step(of_replicas)
        watch.step(number)
    return followed, watch


# In `fit`.


class Counted(keras.layers.Layer):
    """A layer that counts how often it is traced."""

    traced = 0

    def call(self, inputs):
        Counted.traced += 1
        return inputs


def compiled(scaling):
    keras.utils.set_random_seed(0)
    layers = [
        Counted(),
        keras.layers.Dense(8, activation="tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    adam = keras.optimizers.Adam(1e-3)
    keras_mp.compile(model, adam, "mse", policy="mixed_float16", scaling=scaling)
    return model


class Steps(keras.callbacks.Callback):
    """Calls a function after each step."""

    def __init__(self, after):
        super().__init__()
        self.on_train_batch_end = lambda batch, logs=None: after(batch)


class Scales(keras_mp.recording.BatchCallback):
    """Sets the loss scale of each step."""

    def __init__(self, scales):
        super().__init__()
        self.scales = scales

    def before_step(self, step, data):
        self.model.optimizer.set_scale(self.scales[step - 1])


def run_fit(steps):
    """Train a model, and another one in the good steps only, at the same scales."""
    added = poison(steps, 1)
    x = np.random.default_rng(0).normal(size=(steps, 2, 4)).astype("float32")
    y = x[..., :1] ** 2
    x[:, 0, :1] += added
    limits = {"max_scale": 2.0**8, "initial_scale": 2.0**8}  # nothing overflows
    model = compiled(rule("plain", **limits))
    followed = Followed(model.optimizer, Dynamic(**RULES["plain"], **limits))
    watch = Watch(steps, lambda: Counted.traced)

    def after(number):
        followed.step(added[number])
        watch.step(number)

    fit(model, x, y, Steps(after))
    good = np.flatnonzero(followed.good)
    again = compiled(rule("plain", **limits))
    fit(again, x[good], y[good], Scales([followed.scales[each] for each in good]))
    same = different(dict(enumerate(zip(values(model), values(again), strict=True))))
    return {**followed.report(), **watch.report(), "values that differ": same}


def fit(model, x, y, callback):
    batches = tf.data.Dataset.from_tensor_slices((x, y))
    model.fit(batches, verbose=0, callbacks=[callback])


def values(model):
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    variables += model.optimizer.inner_optimizer.variables
    return [np.asarray(each.numpy()) for each in variables]


def main(kind, steps):
    if kind == "fit":
        results = [run_fit(steps)]
    else:
        two = kind == "replicas"
        strategy = strategy_here() if two else tf.distribute.get_strategy()
        results = [run_sgd(strategy, steps), run_adam(strategy, steps)]
        if two:
            alone = run_keras(strategy, steps)
            results = [result | alone for result in results]
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
