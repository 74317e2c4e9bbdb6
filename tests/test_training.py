"""`compile`."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import (
    GENTLE,
    POISON,
    Gan,
    X,
    Y,
    state,
    stateful_model,
)

import keras_mp
from keras_mp import scaling

DYNAMIC = scaling.DynamicLossScale()
CHECK = scaling.StaticLossScale(1.0)


def dense_model(dtype=None):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, name="out", dtype=dtype)]
    )


# compile: who gets loss scaling.


@pytest.mark.parametrize(
    ("dtype", "arguments", "rule"),
    [
        ("mixed_float16", {}, DYNAMIC),
        ("float16", {}, DYNAMIC),
        ("mixed_bfloat16", {}, CHECK),
        ("bfloat16", {}, CHECK),
        ("float32", {}, None),
        ("float32", {"guard": True}, CHECK),
        ("mixed_bfloat16", {"guard": True}, CHECK),
        ("mixed_bfloat16", {"guard": False}, None),
        ("mixed_bfloat16", {"scaling": "dynamic"}, DYNAMIC),
        ("float32", {"policy": "mixed_float16"}, DYNAMIC),
        ("mixed_float16", {"policy": "float32"}, None),
        ("mixed_float16", {"policy": "mixed_bfloat16"}, CHECK),
        ("mixed_float16", {"policy": "mixed_bfloat16", "guard": False}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["adam", "instance", "config"])
def test_optimizer_is_wrapped_if_a_layer_computes_in_16_bits(
    dtype, arguments, rule, optimizer
):
    optimizers = {
        "adam": "adam",
        "instance": keras.optimizers.Adam(),
        "config": keras.optimizers.serialize(keras.optimizers.Adam()),
    }
    model = dense_model(dtype)
    keras_mp.compile(model, optimizers[optimizer], loss="mse", **arguments)
    cls = keras_mp.LossScaleOptimizer if rule else keras.optimizers.Adam
    assert type(model.optimizer) is cls
    assert getattr(model.optimizer, "scaling", None) == rule
    assert np.isfinite(model.train_on_batch(X, Y))


def test_global_policy_and_sublayers_count():
    with keras_mp.policy_scope("mixed_float16"):
        inputs = keras.Input((4, 2))
        attention = keras.layers.MultiHeadAttention(1, 2)(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Flatten(dtype="float32")(attention))
    keras_mp.compile(model, "sgd", loss="mse")
    assert isinstance(model.optimizer, keras_mp.LossScaleOptimizer)


def test_keras_compile_arguments_pass_through():
    model = dense_model("mixed_float16")
    keras_mp.compile(
        model, "sgd", "mse", metrics=["mae"], steps_per_execution=3, jit_compile=False
    )
    assert model.steps_per_execution == 3
    logs = model.fit(X, Y, verbose=0, batch_size=8).history
    assert set(logs) == {"loss", "mae"}


@pytest.mark.parametrize(
    "rule",
    [
        scaling.DynamicLossScale(initial_scale=8.0, growth_factor=4.0),
        scaling.StaticLossScale(8.0),
        "log_normal",
    ],
    ids=str,
)
def test_scaling_is_used(rule):
    model = dense_model("mixed_float16")
    keras_mp.compile(model, "sgd", "mse", scaling=rule)
    assert model.optimizer.scaling == scaling.get(rule)


@pytest.mark.parametrize("given", [True, keras_mp.SpikeRule(4.0, 16)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "rule"),
    [("float32", CHECK), ("mixed_bfloat16", CHECK), ("mixed_float16", DYNAMIC)],
)
@pytest.mark.parametrize("way", ["compile", "wrap_optimizer"])
def test_skip_spikes_is_used_in_any_dtype(way, dtype, rule, given):
    model = dense_model(dtype)
    if way == "compile":
        keras_mp.compile(model, "sgd", "mse", skip_spikes=given)
        optimizer = model.optimizer
    else:
        optimizer = keras_mp.wrap_optimizer(model, "sgd", skip_spikes=given)
    expected = keras_mp.SpikeRule() if given is True else given
    assert (optimizer.scaling, optimizer.skip_spikes) == (rule, expected)


def test_skip_spikes_of_an_optimizer_that_has_them():
    rule = keras_mp.SpikeRule(4.0, 16)
    model = dense_model("mixed_float16")
    # In bfloat16 it only checks; for float16 it gets a scale, and keeps its rule.
    scaling_of = scaling.StaticLossScale(1.0)
    optimizer = keras_mp.LossScaleOptimizer("sgd", scaling_of, skip_spikes=rule)
    keras_mp.compile(model, optimizer, "mse", skip_spikes=rule)
    assert (model.optimizer.scaling, model.optimizer.skip_spikes) == (DYNAMIC, rule)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("how", [{}, {"jit_compile": True}, {"run_eagerly": True}])
def test_a_spike_of_fit_changes_nothing_in_the_model(dtype, how):
    layers = [
        keras.layers.Dense(4),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(1),
    ]
    with keras_mp.policy_scope(dtype):
        model = keras.Sequential([keras.Input((4,)), *layers])
    rule = keras_mp.SpikeRule(window=8)
    keras_mp.compile(model, "adam", "mse", skip_spikes=rule, **how)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    kept = [*model.trainable_variables, *model.non_trainable_variables]
    kept += model.optimizer.inner_optimizer.variables
    before = list(map(np.array, kept))
    counts = model.optimizer.stats()
    model.fit(x[:8], y[:8] + 1e4, batch_size=8, verbose=0)
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)
    after = model.optimizer.stats()
    assert (after["spikes"], after["skipped"]) == (1, counts["skipped"] + 1)
    assert after["scale"] == counts["scale"]
    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    assert model.optimizer.stats()["applied"] == counts["applied"] + 1


def test_own_wrapped_optimizer_is_used_as_it_is():
    optimizer = keras_mp.LossScaleOptimizer("sgd", 8.0)
    model = dense_model("mixed_float16")
    keras_mp.compile(model, optimizer, "mse")
    assert model.optimizer is optimizer


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"optimizer": 3}, TypeError, "needs a keras optimizer"),
        ({"policy": "mixed_float8"}, ValueError, "no dtype policy"),
        ({"scaling": 128.0}, ValueError, "StaticLossScale"),
        ({"scaling": "loud"}, ValueError, "not a loss-scale rule"),
        ({"guard": "yes"}, TypeError, "needs True, False or None"),
        ({"guard": False}, ValueError, "float16 without loss scaling"),
        ({"guard": False, "scaling": "dynamic"}, ValueError, "Leave out one"),
        ({"guard": False, "skip_spikes": True}, ValueError, "Leave out one"),
        ({"skip_spikes": 6.0}, TypeError, "None, True, or a keras_mp.SpikeRule"),
        (
            {"optimizer": keras_mp.LossScaleOptimizer("sgd"), "skip_spikes": True},
            ValueError,
            "Give it to LossScaleOptimizer",
        ),
        (
            {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
            ValueError,
            r"Pass its `\.inner_optimizer`",
        ),
        (
            {
                "optimizer": keras_mp.LossScaleOptimizer("sgd"),
                "scaling": scaling.StaticLossScale(2.0),
            },
            ValueError,
            "in one place",
        ),
    ],
    ids=[
        "optimizer",
        "policy",
        "number",
        "name",
        "no bool",
        "bare float16",
        "bare rule",
        "bare spikes",
        "spikes",
        "two spike rules",
        "keras wrapper",
        "two rules",
    ],
)
def test_impossible_arguments_are_refused(arguments, error, words):
    model = dense_model("mixed_float16")
    with pytest.raises(error, match=words):
        keras_mp.compile(model, **{"optimizer": "sgd", "loss": "mse", **arguments})
    assert not model.compiled


@pytest.mark.parametrize(
    "bad",
    [{"optimizer": 3}, {"optimizer": "adan"}, {"scaling": "loud"}, {"guard": False}],
    ids=str,
)
def test_refused_call_leaves_the_layers_as_they_were(bad):
    model = dense_model()
    with pytest.raises((TypeError, ValueError)):
        keras_mp.compile(model, loss="mse", policy="mixed_float16", **bad)
    assert model.layers[0].compute_dtype == "float32"


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="needs a Keras model"):
        keras_mp.compile("adam", "mse")


@pytest.mark.parametrize("built", [True, False])
def test_rule_that_matches_no_layer_is_reported_by_name(built):
    layers = [keras.layers.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((4,)), *layers] if built else layers)
    policy = keras_mp.Policy("mixed_float16", float32=["haed", "head"])
    with pytest.warns(UserWarning, match="'haed' matches no layer.*'head'") as caught:
        keras_mp.compile(model, "sgd", "mse", policy=policy)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_rules_that_match_are_not_reported():
    policy = keras_mp.Policy("mixed_float16", float32=["out", keras.layers.Dense])
    keras_mp.compile(dense_model(), "sgd", "mse", policy=policy)


# Models whose compile has arguments of its own.


class WithDefaults(keras.Model):
    """Its compile has defaults of its own, as those of KerasHub's tasks."""

    def __init__(self):
        inputs = keras.Input((4,))
        super().__init__(inputs, keras.layers.Dense(1)(inputs))

    def compile(self, optimizer="auto", loss="auto", **kwargs):
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(0.125)
        if loss == "auto":
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
        self.chosen = optimizer
        super().compile(optimizer=optimizer, loss=loss, **kwargs)


class Detector(keras.Model):
    """Its compile names other losses, as that of KerasHub's RetinaNet."""

    def __init__(self):
        inputs = keras.Input((4,))
        outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in "ab"}
        super().__init__(inputs, outputs)

    def compile(self, optimizer="sgd", a_loss=None, b_loss=None, **kwargs):
        super().compile(optimizer, {"a": a_loss, "b": b_loss}, **kwargs)


class Distiller(keras.Model):
    """Its compile takes nothing else, as that of keras.io's distiller."""

    def __init__(self):
        super().__init__()
        self.student = dense_model()

    def compile(self, optimizer, metrics, student_loss_fn, alpha=0.1):
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss_fn, self.alpha = student_loss_fn, alpha

    def compute_loss(self, x, y, y_pred, *args, **kwargs):
        return self.alpha * self.student_loss_fn(y, y_pred)

    def call(self, x):
        return self.student(x)


class PassesOn(keras.Model):
    """Its compile takes whatever Keras's takes."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)

    def call(self, x):
        return self.dense(x)


OWN = [
    (WithDefaults, (), {}),
    (WithDefaults, ("auto",), {}),
    (WithDefaults, ("adam",), {}),
    (WithDefaults, ("adam", "auto"), {"metrics": ["mae"]}),
    (WithDefaults, (keras.optimizers.serialize(keras.optimizers.SGD()),), {}),
    (Detector, ("adam",), {"a_loss": "mse", "b_loss": "mae"}),
    (Detector, (), {"a_loss": "mse", "b_loss": "mse"}),
    (Distiller, ("adam", ["mae"]), {"student_loss_fn": keras.losses.Huber()}),
    (PassesOn, ("sgd", "mse", None, ["mae"]), {}),
    (PassesOn, (), {"optimizer": "sgd", "loss": "mse"}),
    (PassesOn, (), {"loss": "mse"}),
]


def targets_of(model):
    y = Y[:, None].astype("float32")
    return {"a": y, "b": y} if isinstance(model, Detector) else y


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("make", "args", "kwargs"), OWN)
def test_own_compile_gets_what_was_given(make, args, kwargs, policy):
    """Logs and settings are those of the same call of model.compile in float32."""
    histories, rates = [], []
    for compile in (keras.Model.compile, keras_mp.compile):
        keras.utils.set_random_seed(0)
        model = make()
        if compile is keras_mp.compile:
            keras_mp.compile(model, *args, policy=policy, **kwargs)
            assert isinstance(model.optimizer, keras_mp.LossScaleOptimizer)
        else:
            model.compile(*args, **kwargs)
        rates.append(float(model.optimizer.learning_rate))
        y = targets_of(model)
        histories.append(model.fit(X, y, verbose=0, shuffle=False).history)
    assert rates[0] == rates[1]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        # One layer and one step: bfloat16 rounds by 2**-9, and some numbers twice.
        np.testing.assert_allclose(histories[1][name], values, rtol=0.02, err_msg=name)


def test_optimizer_that_compile_chose_is_ours_wherever_it_is_kept():
    model = WithDefaults()
    keras_mp.compile(model, policy="mixed_float16", scaling=GENTLE)
    assert model.optimizer is model.chosen
    assert model.optimizer.scaling == GENTLE
    assert type(model.optimizer.inner_optimizer) is keras.optimizers.Adam
    saved = model.get_compile_config()["optimizer"]["registered_name"]
    assert saved == "keras_mp>LossScaleOptimizer"
    model.fit(POISON, Y, batch_size=8, verbose=0, shuffle=False)
    assert model.optimizer.stats()["skipped"] == 1
    assert all(np.isfinite(value).all() for value in state(model).values())


def test_every_optimizer_among_the_arguments_is_scaled():
    gan = Gan()
    keras_mp.compile(
        gan, "adam", second_optimizer=keras.optimizers.SGD(0.5), policy="mixed_float16"
    )
    assert gan.first_optimizer == "adam"  # Gan's own business: it could be any name
    optimizers = keras.optimizers.Adam(), keras.optimizers.SGD(0.5)
    keras_mp.compile(gan, *optimizers, scaling=GENTLE)
    assert gan.first_optimizer.inner_optimizer is optimizers[0]
    assert gan.second_optimizer.inner_optimizer is optimizers[1]
    gan.fit(X, Y, batch_size=8, verbose=0)
    assert gan.second_optimizer.stats()["applied"] == 4


@pytest.mark.parametrize("make", [dense_model, WithDefaults])
def test_no_optimizer_stays_none(make):
    model = make()
    keras_mp.compile(model, None, "mse", policy="mixed_float16")
    assert model.optimizer is None
    assert np.isfinite(model.evaluate(X, Y, verbose=0))


def test_own_compile_refuses_what_it_does_not_take():
    model = Distiller()
    with pytest.raises(TypeError, match="Distiller.compile.*student_loss_fn.*missing"):
        keras_mp.compile(model, "adam", metrics=[], policy="mixed_float16")
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss'"):
        keras_mp.compile(model, "adam", [], len, loss="mse", policy="mixed_float16")
    assert model.student.layers[0].compute_dtype == "float32"


def test_compiling_again_lets_the_old_optimizer_go():
    model = stateful_model()
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    model.train_on_batch(X, Y)
    old = weakref.ref(model.optimizer)
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16", scaling=GENTLE)
    gc.collect()
    assert old() is None
    model.train_on_batch(POISON[8:16], Y[8:16])
    assert all(np.isfinite(v.numpy()).all() for v in model.non_trainable_variables)


def test_compiling_again_with_keras_needs_no_loss_scaling():
    model = stateful_model()
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    model.compile("sgd", "mse", auto_scale_loss=False)
    gc.collect()
    assert np.isfinite(model.train_on_batch(X, Y))


def test_train_step_that_returns_its_own_loss_is_believed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x)[:, 0] - tf.cast(y, "float32")) ** 2)
                scaled = self.optimizer.scale_loss(loss)
            grads = tape.gradient(scaled, self.trainable_weights)
            self.optimizer.apply(grads, self.trainable_weights)
            return {"loss": loss, "other": loss}

    with keras_mp.policy_scope("mixed_float16"):
        model = Own()
    keras_mp.compile(model, "sgd", "mse", scaling=GENTLE)
    logs = model.fit(X, Y, batch_size=32, verbose=0).history
    assert logs["loss"] == logs["other"] and logs["loss"][0] > 0


def test_input_layer_made_in_float16_asks_for_no_scaling():
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16")
    assert model.optimizer.scaling == CHECK
    keras_mp.compile(model, "sgd", "mse", policy="float32")
    assert type(model.optimizer) is keras.optimizers.SGD
