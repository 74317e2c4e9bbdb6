"""`fit` and the like under a strategy; each group of cases in a process of its own.

`test_distribute` says why. What Keras itself makes of the same calls is tested too, so
that the day it mends them shows.
"""

import functools
import json
import sys

import keras
import numpy as np
import pytest
from support.processes import mirrored, run_alone

import keras_mp
from keras_mp.wrapping import is_wrapped

pytestmark = pytest.mark.long


@functools.cache
def run_group(group):
    """Run ``group`` in a process of its own and return its results."""
    return run_alone(__file__, group)


def assert_close(left, right):
    for a, b in zip(left, right, strict=True):
        # The batch is summed in another order: a few roundings of float32.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_without_a_strategy_only_what_executes_is_replaced(policy):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    keras_mp.compile(model, "sgd", "mse", policy=policy)
    assert "_maybe_symbolic_build" not in vars(model)
    assert not is_wrapped(model, "test_step", "any share")
    assert "_make_function" in vars(model)
    assert "apply" not in vars(model.optimizer)
    # What hands float32 to steps is put on under any 16-bit policy.
    assert ("train_step" in vars(model)) == (policy == "mixed_float16")


# Batches that do not divide by the replicas.


@pytest.mark.parametrize("way", ["fit", "generator", "train_on_batch", "evaluate"])
def test_uneven_first_batch_builds_the_model_and_trains(way):
    result = run_group("uneven")[way]
    assert result["built"]
    assert np.isfinite(result["loss"])


def test_uneven_batch_is_the_mean_of_the_replicas_means():
    result = run_group("uneven")
    assert_close(result["fit"]["weights"], result["weighted"])


def test_share_of_no_rows_leaves_no_trace():
    result = run_group("empty")
    # One row on two replicas: one replica's mean, halved by the number of replicas.
    assert_close(result["weights"], result["weighted"])
    seeing, empty = result["statistics"]
    assert_close(seeing, result["weighted_statistics"])
    assert empty == result["statistics_before"][1]
    assert result["loss"] == pytest.approx(result["weighted_loss"], rel=1e-5)


def test_share_of_no_rows_is_no_overflow():
    result = run_group("empty")
    assert result["stats"]["applied"] == 2 and result["stats"]["skipped"] == 0
    assert np.isfinite(result["evaluated"]).all()


def test_share_of_no_rows_in_eager_steps_and_sparse_gradients():
    assert run_group("empty")["embedding_is_finite"]


def test_model_without_call_trains_and_logs():
    result = run_group("empty")["gan"]
    assert np.isfinite(result["weights"]).all()
    assert np.isfinite(result["loss"])
    assert result["steps"] == 2


# Losses that are not finite.


def test_each_replica_leaves_out_its_own_and_a_step_is_counted_once():
    result = run_group("losses")
    assert result["loss"] == pytest.approx(result["expected"])
    # A batch in each of two epochs; a share of no rows, whose loss is NaN, is none.
    assert result["nonfinite_losses"] == 2


def test_nothing_finite_on_any_replica_reads_nan():
    assert np.isnan(run_group("losses")["nothing"]).all()


# Several steps in one execution.


@pytest.mark.parametrize("steps", ["3", "8"])
def test_steps_per_execution_change_no_bit(steps):
    result = run_group("steps")
    assert result[steps]["weights"] == result["1"]["weights"]
    assert result[steps]["history"] == result["1"]["history"]
    assert result[steps]["stats"] == result["1"]["stats"]
    assert result[steps]["stats"]["skipped"] == 2  # a poisoned batch in each epoch
    assert result[steps]["updates"] == 2  # traced once on each replica


@pytest.mark.parametrize(
    ("steps", "ends"),
    [("1", [0, 1, 2, 3, 4]), ("3", [2, 5]), ("8", [7])],
)
def test_callbacks_are_called_once_an_execution_as_by_keras(steps, ends):
    assert run_group("steps")[steps]["ends"] == 2 * ends


# XLA.


def test_jit_is_switched_off_with_one_warning_that_says_why():
    result = run_group("jit")
    (message,) = result["warnings"]
    assert "jit_compile=True" in message and "one device" in message
    assert np.isfinite(result["loss"]) and not result["jit_compile"]
    assert result["warnings_without_jit"] == []


def test_one_replica_keeps_jit():
    result = run_group("jit_alone")
    assert result["warnings"] == [] and result["jit_compile"]
    assert np.isfinite(result["loss"])


# Who was created where.


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("optimizer outside", ["optimizer 'adam", "inside the same", "by name"]),
        ("scaler outside", ["loss_scale_optimizer", "inside the same"]),
        ("wrap_optimizer", ["optimizer 'adam", "inside the same"]),
        ("layers outside", ["kernel", "inside the same"]),
        ("model outside", ["MirroredStrategy", "outside it", "keras_mp.load_model"]),
        ("model elsewhere", ["OneDeviceStrategy", "another strategy"]),
        ("optimizer inside", ["no strategy", "optimizer 'adam"]),
    ],
)
def test_what_was_created_elsewhere_is_refused(case, words):
    message = run_group("scope")[case]
    assert all(word in message for word in words), message


def test_optimizer_by_name_is_created_where_the_model_was():
    assert np.isfinite(run_group("scope")["by name"])


# Saving.


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_saved_model_goes_on_as_if_nothing_had_been(where):
    result = run_group("resume")
    assert_close(result[where]["weights"], result["through"]["weights"])
    assert result[where]["stats"] == result["through"]["stats"]
    assert result[where]["stats"]["growths"] == 2
    if where == "inside":
        assert result[where]["weights"] == result["through"]["weights"]


def test_model_loaded_in_the_scope_is_mended():
    assert np.isfinite(run_group("resume")["uneven"])


# Keras alone.


def test_keras_fails_on_an_uneven_first_batch():
    assert "same size and shape" in run_group("keras")["uneven"]


def test_keras_fails_on_several_steps_per_execution():
    assert "must feed a value" in run_group("keras")["steps"]


def test_keras_fails_with_jit():
    assert "from device" in run_group("keras")["jit"]


@pytest.mark.internals
def test_small_gradients_of_a_share_enter_its_branch_in_stacks():
    import tensorflow as tf

    from keras_mp.distribute import empty

    @tf.function
    def clean(is_empty, *gradients):
        return empty._without_nan(is_empty, [None, *gradients])[1:]

    gradients = [tf.ones((2, 2))] * 19 + [tf.fill((2, 2), np.nan), tf.ones((300, 300))]
    graph = clean.get_concrete_function(tf.constant(True), *gradients).graph
    (branch,) = [op for op in graph.get_operations() if op.type.endswith("If")]
    assert len(branch.outputs) == 2
    for is_empty in (True, False):
        *ones, small, large = clean(tf.constant(is_empty), *gradients)
        np.testing.assert_array_equal(small, 0.0 if is_empty else np.nan)
        np.testing.assert_array_equal(large, 1.0)
        np.testing.assert_array_equal(ones, 1.0)


def test_keras_lets_a_share_of_no_rows_ruin_all():
    assert run_group("keras")["empty"] == ["gamma"]


# What runs in the processes.


def _data(rows):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")
    return x, x[:, :1] ** 2


def _layers(normalize=False, built=True):
    keras.utils.set_random_seed(0)
    return [
        *([keras.Input((4,))] if built else []),
        keras.layers.Dense(4),
        *([keras.layers.BatchNormalization()] if normalize else []),
        keras.layers.Dense(1, dtype="float32"),
    ]


def _model(optimizer="adam", normalize=False, built=True, **arguments):
    model = keras.Sequential(_layers(normalize, built))
    keras_mp.compile(model, optimizer, "mse", **arguments)
    return model


def _gentle():
    """Return a rule under which only poisoned batches overflow."""
    return keras_mp.scaling.StaticLossScale(8.0)


def _weights(model):
    return [weight.numpy().tolist() for weight in model.trainable_weights]


def _loss(history):
    return history.history["loss"][-1]


def _error(function):
    """Return the message of the exception that ``function`` raises."""
    try:
        function()
    except Exception as error:
        return str(error)
    return ""


def group_uneven():
    x, y = _data(5)
    strategy = mirrored(2)

    def unbuilt():
        with strategy.scope():
            return _model(built=False)

    def generator():
        yield x, y

    models = {
        way: unbuilt() for way in ("fit", "generator", "train_on_batch", "evaluate")
    }
    losses = {
        "fit": _loss(models["fit"].fit(x, y, batch_size=5, shuffle=False, verbose=0)),
        "generator": _loss(models["generator"].fit(generator(), verbose=0)),
        "train_on_batch": float(models["train_on_batch"].train_on_batch(x, y)),
        "evaluate": models["evaluate"].evaluate(x, y, batch_size=5, verbose=0),
    }
    alone = _model(built=False)
    # Three rows on the first replica and two on the second.
    weights = np.array([5 / 6] * 3 + [5 / 4] * 2)
    alone.fit(x, y, sample_weight=weights, batch_size=5, shuffle=False, verbose=0)
    return {"weighted": _weights(alone)} | {
        way: {"loss": losses[way], "built": model.built, "weights": _weights(model)}
        for way, model in models.items()
    }


def group_empty():
    strategy = mirrored(2)
    x, y = _data(9)
    first, last = slice(8), slice(8, 9)
    with strategy.scope():
        model = _model("sgd", normalize=True, scaling=_gentle())
    alone = _model("sgd", normalize=True, scaling=_gentle())

    def statistics(replica):
        variables = model.non_trainable_variables
        parts = [strategy.experimental_local_results(v.value) for v in variables]
        return [part[replica].numpy().tolist() for part in parts]

    model.fit(x[first], y[first], batch_size=8, shuffle=False, verbose=0)
    before = [statistics(0), statistics(1)]
    for target, value in zip(alone.variables, model.variables, strict=True):
        target.assign(value.numpy())
    loss = _loss(model.fit(x[last], y[last], verbose=0))
    halved = _loss(
        alone.fit(x[last], y[last], sample_weight=np.array([0.5]), verbose=0)
    )
    statistics_alone = [v.numpy().tolist() for v in alone.non_trainable_variables]
    return {
        "weights": _weights(model),
        "weighted": _weights(alone),
        "statistics_before": before,
        "statistics": [statistics(0), statistics(1)],
        "weighted_statistics": statistics_alone,
        "loss": loss,
        "weighted_loss": 2 * halved,
        "stats": model.optimizer.stats(),
        "evaluated": [model.evaluate(x, y, batch_size=8, verbose=0)],
        "embedding_is_finite": _embedding_is_finite(strategy),
        "gan": _gan(strategy, x, y),
    }


def _gan(strategy, x, y):
    """Train a model whose ``train_step`` alone knows its parts and their optimizers."""
    import tensorflow as tf

    class Gan(keras.Model):
        def __init__(self):
            super().__init__()
            self.part = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

        def compile(self, optimizer):
            super().compile()
            self.part_optimizer = optimizer

        def train_step(self, data):
            rows, target = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.part(rows) - target) ** 2)
                scaled = self.part_optimizer.scale_loss(loss)
            weights = self.part.trainable_weights
            gradients = tape.gradient(scaled, weights)
            self.part_optimizer.apply_gradients(zip(gradients, weights, strict=True))
            return {"loss": loss}

    with strategy.scope():
        model = Gan()
        adam = keras.optimizers.Adam()
        optimizer = keras_mp.wrap_optimizer(model, adam, scaling=_gentle())
        model.compile(optimizer)
    loss = _loss(model.fit(x, y, batch_size=8, shuffle=False, verbose=0))
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    return {
        "weights": weights.tolist(),
        "loss": loss,
        "steps": optimizer.stats()["applied"],
    }


def _embedding_is_finite(strategy):
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((2,), dtype="int32"),
                keras.layers.Embedding(6, 3),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
        keras_mp.compile(model, "adam", "mse", run_eagerly=True)
    model.fit(np.ones((1, 2), "int32"), np.ones((1, 1)), verbose=0)
    return bool(all(np.isfinite(weight).all() for weight in model.get_weights()))


class _Ends(keras.callbacks.Callback):
    """Notes the batches at whose end Keras called."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)


def group_losses():
    """Fit on batches of 4, 4, 4 and 1 rows; in the second one replica sees an inf."""
    numbers = np.arange(13, dtype="float32")
    numbers[6] = np.inf
    rows = numbers[:, None]
    with mirrored(2).scope():
        ones = keras.layers.Dense(1, kernel_initializer="ones", dtype="float32")
        model = keras.Sequential([keras.Input((1,)), ones])
        keras_mp.compile(model, keras.optimizers.SGD(0.0), "mse", scaling=_gentle())
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    history = model.fit(rows, 0 * np.arange(13), epochs=2, **options).history
    stats = model.optimizer.stats()
    nothing = model.fit(rows[[6] * 4], np.zeros(4), **options).history
    finite = np.delete(numbers, [6, 7])
    return {
        "loss": history["loss"],
        "expected": 2 * [float(np.mean(finite**2))],
        "nonfinite_losses": stats["nonfinite_losses"],
        "nothing": nothing["loss"],
    }


def _counted(owner, name):
    """Return a list that grows by one with each call of the method ``name``."""
    calls, method = [], getattr(owner, name)

    @functools.wraps(method)
    def counted(*arguments, **keywords):
        calls.append(name)
        return method(*arguments, **keywords)

    setattr(owner, name, counted)
    return calls


def group_steps():
    strategy = mirrored(2)
    x, y = _data(33)  # five batches, the last of one row
    x[15] = 1e30  # in the half of the last replica

    def trained(steps):
        with strategy.scope():
            model = _model(
                normalize=True,
                policy="mixed_float16",
                scaling=_gentle(),
                metrics=["mae"],
                steps_per_execution=steps,
            )
        updates = _counted(model.optimizer, "apply_gradients")
        ends = _Ends()
        history = model.fit(
            x,
            y,
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[ends],
            validation_data=(x[16:], y[16:]),
        ).history
        weights, stats = _weights(model), model.optimizer.stats()
        return {
            "weights": weights,
            "stats": stats,
            "history": history,
            "ends": ends.batches,
            "updates": len(updates),
        }

    return {steps: trained(steps) for steps in (1, 3, 8)}


def _jit(strategy):
    import warnings

    def compiled(**arguments):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with strategy.scope():
                model = _model("sgd", **arguments)
        return model, [str(warning.message) for warning in caught]

    model, caught = compiled(jit_compile=True)
    return {
        "warnings": caught,
        "loss": _loss(model.fit(*_data(8), verbose=0)),
        "jit_compile": bool(model.jit_compile),
        "warnings_without_jit": compiled()[1],
    }


def group_jit():
    return _jit(mirrored(2))


def group_jit_alone():
    return _jit(mirrored(1))


def group_scope():
    import tensorflow as tf

    strategy, other = mirrored(2), tf.distribute.OneDeviceStrategy("CPU:0")
    outside = keras.Sequential(_layers())
    layers = keras.Sequential(_layers()).layers
    optimizers = {
        "optimizer outside": keras.optimizers.Adam(),
        "scaler outside": keras_mp.LossScaleOptimizer("adam"),
    }
    with strategy.scope():
        inside, mixed = keras.Sequential(_layers()), keras.Sequential(layers)
        adam = keras.optimizers.Adam()

    def refused(model, optimizer, scope=None, act=keras_mp.compile):
        with scope.scope() if scope else tf.name_scope("no_scope"):
            return _error(lambda: act(model, optimizer))

    results = {case: refused(inside, optimizers[case], strategy) for case in optimizers}
    keras_mp.compile(inside, "adam", "mse", policy="mixed_float16")
    return results | {
        "wrap_optimizer": refused(
            inside, keras.optimizers.Adam(), act=keras_mp.wrap_optimizer
        ),
        "layers outside": refused(mixed, "adam", strategy),
        "model outside": refused(outside, "adam", strategy),
        "model elsewhere": refused(inside, "adam", other),
        "optimizer inside": refused(outside, adam),
        "by name": _loss(inside.fit(*_data(8), verbose=0)),
    }


def group_resume():
    import pathlib
    import tempfile

    strategy = mirrored(2)
    x, y = _data(32)
    rule = keras_mp.scaling.DynamicLossScale(initial_scale=8.0, growth_interval=3)

    def train(model, rows):
        # Eight rows a step: four steps in all.
        model.fit(x[rows], y[rows], batch_size=8, shuffle=False, verbose=0)
        return {"weights": _weights(model), "stats": model.optimizer.stats()}

    def start():
        with strategy.scope():
            return _model(scaling=rule)

    def all_at_once():
        model = start()
        train(model, slice(16))
        train(model, slice(16, 32))
        return train(model, slice(0, 16))

    model = start()
    train(model, slice(16))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        with strategy.scope():
            inside = keras_mp.load_model(path)
        outside = keras_mp.load_model(path)
    results = {"through": all_at_once()}
    for where, loaded in (("inside", inside), ("outside", outside)):
        train(loaded, slice(16, 32))
        results[where] = train(loaded, slice(0, 16))
    uneven = _loss(inside.fit(x[:5], y[:5], batch_size=5, verbose=0))
    return results | {"uneven": uneven}


def group_keras():
    strategy = mirrored(2)
    x, y = _data(9)

    def compiled(normalize=False, built=True, **arguments):
        with strategy.scope():
            model = keras.Sequential(_layers(normalize, built))
            model.compile("sgd", "mse", **arguments)
        return model

    def failure(model, rows):
        return _error(lambda: model.fit(x[:rows], y[:rows], batch_size=8, verbose=0))

    poisoned = compiled(normalize=True)
    poisoned.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return {
        "uneven": failure(compiled(built=False), 5),
        "steps": failure(compiled(steps_per_execution=2), 8),
        "jit": failure(compiled(jit_compile=True), 8),
        "empty": [
            weight.name
            for weight in poisoned.trainable_weights
            if not np.isfinite(weight.numpy()).all()
        ],
    }


if __name__ == "__main__":
    print(json.dumps(globals()[f"group_{sys.argv[1]}"]()))
