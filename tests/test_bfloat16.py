"""Models in bfloat16 are guarded, and train otherwise as with the bare optimizer."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import Gan, X, Y, assert_same_state, state, stateful_model
from support.processes import mirrored, run_alone

import keras_mp
from keras_mp import scaling

CHECK = scaling.StaticLossScale(1.0)
NAN = X.copy()
NAN[9] = np.nan  # in batches of 8, the second
STEPS = {"batch_size": 8, "shuffle": False, "verbose": 0}


def sgd():
    # Without momentum, which TensorFlow's kernel and Keras round at different places.
    return keras.optimizers.SGD(0.1)


def compiled(optimizer=None, layers=None, policy="mixed_bfloat16", **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers) if layers else stateful_model()
    optimizer = optimizer or sgd()
    arguments = {"loss": "binary_crossentropy", "jit_compile": False, **arguments}
    keras_mp.compile(model, optimizer, policy=policy, **arguments)
    return model


def everything(model):
    """Return the variables of ``model`` and of its Keras optimizer."""
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    slots = {
        f"optimizer {i} {v.name.split('_')[-1]}": v.numpy().copy()
        for i, v in enumerate(optimizer.variables)
    }
    return state(model) | slots


# A step that is not finite.


@pytest.mark.long
@pytest.mark.parametrize("low", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"run_eagerly": True}, {}], ids=str
)
def test_a_nan_changes_nothing(options, low):
    with keras_mp.policy_scope(low):
        model = stateful_model()
    keras_mp.compile(model, keras.optimizers.Adam(), "binary_crossentropy", **options)
    model.fit(X[:8], Y[:8], **STEPS)
    before = everything(model)
    model.fit(NAN[8:16], Y[8:16], **STEPS)
    assert_same_state(before, everything(model))
    assert model.optimizer.stats()["skipped"] == 1


def test_the_bare_optimizer_lets_a_nan_ruin_all():
    model = compiled("adam", guard=False)
    model.fit(NAN[8:16], Y[8:16], **STEPS)
    ruined = [name for name, v in everything(model).items() if np.isnan(v).any()]
    assert {"kernel", "moving_mean"} <= {name.split()[-1] for name in ruined}
    assert any("momentum" in name for name in ruined)


def test_each_optimizer_of_a_gan_is_guarded():
    gan = Gan()
    keras_mp.compile(gan, sgd(), sgd(), policy="mixed_bfloat16")
    gan.fit(NAN, Y, **STEPS)
    for optimizer in (gan.first_optimizer, gan.second_optimizer):
        assert optimizer.scaling == CHECK
        assert optimizer.stats()["applied"] == 3 and optimizer.stats()["skipped"] == 1
    assert all(np.isfinite(value).all() for value in state(gan).values())


# A good run.


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{}, {"run_eagerly": True}, {"steps_per_execution": 3}, {"metrics": ["mae"]}],
    ids=str,
)
def test_weights_and_logs_are_those_of_the_bare_optimizer(options):
    runs = []
    for guard in (None, False):
        model = compiled(guard=guard, **options)
        history = model.fit(X, Y, epochs=3, validation_data=(X, Y), **STEPS).history
        runs.append((everything(model), history))
    (guarded, logs), (bare, bare_logs) = runs
    assert_same_state(guarded, {**guarded, **bare})
    assert logs == bare_logs


@pytest.mark.long
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.RMSprop(0.01),
        lambda: keras.optimizers.AdamW(0.01, global_clipnorm=0.5),
    ],
    ids=["adam", "momentum", "rmsprop", "adamw"],
)
def test_other_optimizers_differ_by_rounding(make, jit_compile):
    layers = [keras.Input((4,)), keras.layers.Dense(1, "sigmoid")]
    guarded, bare = (
        compiled(make(), layers, guard=guard, jit_compile=jit_compile)
        for guard in (None, False)
    )
    for model in (guarded, bare):
        model.fit(X, Y, **STEPS)
    for a, b in zip(guarded.get_weights(), bare.get_weights(), strict=True):
        # Four updates by kernels or XLA, which round each at other places than Keras's
        # operations: a few roundings of numbers below 1, each 6e-8.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("scale", [None, 128.0])
def test_a_fixed_scale_of_the_optimizer_stays(scale):
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for guard in (None, False):
            optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=scale)
            model = compiled(optimizer, guard=guard)
            model.fit(X, Y, **STEPS)
            runs.append(model)
    assert runs[0].optimizer.scaling == scaling.StaticLossScale(scale or 1.0)
    assert_same_state(*map(state, runs))


@pytest.mark.long
def test_callbacks_of_keras_do_what_they_did():
    def run(guard):
        model = compiled(keras.optimizers.SGD(0.1, use_ema=True), guard=guard)
        seen = []
        callbacks = [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
            keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=0, min_delta=9.0),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(logs["learning_rate"])
            ),
        ]
        model.fit(X, Y, epochs=4, callbacks=callbacks, **STEPS)
        return seen, float(model.optimizer.learning_rate), state(model)

    guarded, bare = run(None), run(False)
    assert guarded[:2] == bare[:2] and guarded[1] < 0.01
    assert_same_state(guarded[2], bare[2])


class OwnStep(keras.Model):
    """Its train_step neither scales its loss nor has it in float32."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x)[:, 0] - tf.cast(y, "float32")) ** 2)
        weights = self.trainable_weights
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"loss": loss}


def test_a_train_step_that_scales_no_loss_is_right():
    runs = []
    for guard in (None, False):
        keras.utils.set_random_seed(0)
        model = OwnStep()
        options = {"jit_compile": False, "guard": guard}
        keras_mp.compile(model, sgd(), policy="mixed_bfloat16", **options)
        model.fit(X, Y, **STEPS)  # warnings are errors
        runs.append(state(model))
    assert_same_state(*runs)


def test_loss_and_gradients_are_handed_back_as_they_are():
    optimizer = keras_mp.LossScaleOptimizer(sgd(), CHECK, all_reduce_dtype="float16")
    loss, gradient = tf.constant(3.0, "bfloat16"), tf.constant([2.0])
    assert optimizer.scale_loss(loss) is loss
    assert optimizer.get_unscaled_gradients([gradient, None])[0] is gradient
    weight = keras.Variable([1.0])
    optimizer.apply([gradient], [weight])
    assert weight.numpy() == pytest.approx(0.8, rel=1e-7)  # one rounding of float32


# Compiled again, for another dtype or rule.


def test_what_only_checks_gets_the_scale_that_is_needed():
    model = compiled("adam", layers=[keras.Input((4,)), keras.layers.Dense(1)])
    model.fit(X, Y, **STEPS)
    inner = model.optimizer.inner_optimizer
    keras_mp.compile(model, model.optimizer, "mse")
    assert model.optimizer.inner_optimizer is inner and model.optimizer.scaling == CHECK
    guard = model.optimizer
    keras_mp.compile(model, guard, "mse", policy="mixed_float16")
    assert model.optimizer.scaling == scaling.DynamicLossScale()
    assert model.optimizer.inner_optimizer is inner
    keras_mp.compile(model, guard, "mse", scaling=CHECK)
    assert model.optimizer is guard
    assert "loss-scaling" in {finding.rule for finding in keras_mp.lint(model)}
    keras_mp.compile(model, guard, "mse", scaling="log_normal", policy="mixed_bfloat16")
    assert model.optimizer.scaling == scaling.LogNormalLossScale()
    assert int(model.optimizer.iterations) == 4


class OwnGuard(keras.Model):
    """Its compile has a guard of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def compile(self, optimizer, guard="default", **kwargs):
        super().compile(optimizer, loss="mse", **kwargs)
        self.guard = guard

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("guard", ["mine", True, False])
def test_a_compile_that_has_a_guard_gets_it(guard):
    with keras_mp.policy_scope("mixed_bfloat16"):
        model = OwnGuard()
    keras_mp.compile(model, "sgd", guard=guard)
    assert model.guard == guard
    assert isinstance(model.optimizer, keras_mp.LossScaleOptimizer)
    keras_mp.compile(model, "sgd")
    assert model.guard == "default"


# Files of the bare optimizer, and files for it.


def saved(model):
    """Return `everything` but the seeds, which Keras does not load."""
    found = everything(model).items()
    return {name: value for name, value in found if "seed" not in name}


@pytest.fixture(scope="module")
def bare():
    model = compiled("adam", guard=False)
    model.fit(X, Y, **STEPS)
    return model


@pytest.mark.parametrize("built", [True, False])
def test_weights_of_the_bare_optimizer_load(bare, tmp_path, built):
    bare.save_weights(tmp_path / "bare.weights.h5")
    model = compiled("adam")
    if built:
        model.optimizer.build(model.trainable_variables)
        model.load_weights(tmp_path / "bare.weights.h5")  # warnings are errors
        assert_same_state(saved(bare), saved(model))
    else:
        with pytest.warns(UserWarning, match="Skipping variable loading"):  # as bare
            model.load_weights(tmp_path / "bare.weights.h5")
        assert saved(bare)["0 kernel"].tolist() == saved(model)["0 kernel"].tolist()


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("of_model", [True, False])
def test_a_tensorflow_checkpoint_of_the_bare_optimizer_restores(
    bare, tmp_path, built, of_model
):
    def parts(model):
        parts = {"model": model, "optimizer": model.optimizer}
        return {"model": model} if of_model else parts

    path = tf.train.Checkpoint(**parts(bare)).save(str(tmp_path / "bare"))
    model = compiled("adam")
    if built:
        model.optimizer.build(model.trainable_variables)
    status = tf.train.Checkpoint(**parts(model)).restore(path)
    model.optimizer.build(model.trainable_variables)
    status.expect_partial()  # it has no counters
    assert_same_state(saved(bare), saved(model))
    assert model.optimizer.stats()["scale"] == 1.0


def test_a_tensorflow_checkpoint_of_its_own_restores_all(tmp_path):
    models = [compiled("adam") for _ in range(2)]
    models[0].fit(NAN, Y, **STEPS)
    path = tf.train.Checkpoint(model=models[0]).save(str(tmp_path / "own"))
    models[1].optimizer.build(models[1].trainable_variables)
    tf.train.Checkpoint(model=models[1]).restore(path).assert_existing_objects_matched()
    assert_same_state(*map(saved, models))
    assert models[0].optimizer.stats() == models[1].optimizer.stats()


@pytest.mark.parametrize("load", [keras_mp.load_model, keras.models.load_model])
@pytest.mark.parametrize("guard", [None, False])
def test_a_saved_model_goes_on_as_it_was(load, guard, tmp_path):
    model = compiled("adam", guard=guard)
    model.fit(X, Y, **STEPS)
    model.save(tmp_path / "model.keras")
    loaded = load(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert_same_state(*map(saved, (model, loaded)))
    keras_mp.compile(loaded, loaded.optimizer, "binary_crossentropy")
    assert loaded.optimizer.scaling == CHECK
    assert_same_state(*map(saved, (model, loaded)))


# Two replicas.


@pytest.fixture(scope="module")
def on_two_replicas():
    return run_alone(__file__)


@pytest.mark.long
def test_two_replicas_train_as_with_the_bare_optimizer(on_two_replicas):
    assert on_two_replicas["guarded"] == on_two_replicas["bare"]


@pytest.mark.long
def test_a_nan_on_one_replica_changes_nothing(on_two_replicas):
    assert on_two_replicas["after"] == on_two_replicas["before"]
    assert on_two_replicas["overflows"] == [0, 1]


def _two_replicas():
    def listed(model):
        return [value.tolist() for value in everything(model).values()]

    strategy, results = mirrored(2), {}
    for name, guard in (("bare", False), ("guarded", None)):
        with strategy.scope():
            model = compiled(guard=guard)
        model.fit(X, Y, **STEPS)
        results[name] = listed(model)
    results["before"] = listed(model)
    model.fit(NAN[[0, 1, 2, 3, 4, 5, 6, 9]], Y[:8], **STEPS)
    overflows = model.optimizer.overflows_by_replica()
    return results | {"after": listed(model), "overflows": overflows}


if __name__ == "__main__":
    print(json.dumps(_two_replicas()))
