"""`compile`, `wrap_optimizer` and `load_model`."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import (
    GENTLE,
    POISON,
    X,
    Y,
    assert_same_state,
    state,
    stateful_model,
)

import keras_mp
from keras_mp import scaling


def dense_model(dtype=None):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, name="out", dtype=dtype)]
    )


# compile: who gets loss scaling.


@pytest.mark.parametrize(
    ("dtype", "arguments", "scaled"),
    [
        ("mixed_float16", {}, True),
        ("float16", {}, True),
        ("mixed_bfloat16", {}, False),
        ("float32", {}, False),
        ("mixed_bfloat16", {"scaling": "dynamic"}, True),
        ("float32", {"policy": "mixed_float16"}, True),
        ("mixed_float16", {"policy": "float32"}, False),
        ("mixed_float16", {"policy": "mixed_bfloat16"}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["adam", "instance", "config"])
def test_optimizer_is_wrapped_if_a_layer_computes_in_float16(
    dtype, arguments, scaled, optimizer
):
    optimizers = {
        "adam": "adam",
        "instance": keras.optimizers.Adam(),
        "config": keras.optimizers.serialize(keras.optimizers.Adam()),
    }
    model = dense_model(dtype)
    keras_mp.compile(model, optimizers[optimizer], loss="mse", **arguments)
    cls = keras_mp.LossScaleOptimizer if scaled else keras.optimizers.Adam
    assert type(model.optimizer) is cls
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
        ({"scaling": "loud"}, ValueError, "no loss-scale rule"),
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
    ids=["optimizer", "policy", "number", "name", "keras wrapper", "two rules"],
)
def test_impossible_arguments_are_refused(arguments, error, words):
    model = dense_model("mixed_float16")
    with pytest.raises(error, match=words):
        keras_mp.compile(model, **{"optimizer": "sgd", "loss": "mse", **arguments})
    assert not model.compiled


@pytest.mark.parametrize(
    "bad", [{"optimizer": 3}, {"optimizer": "adan"}, {"scaling": "loud"}], ids=str
)
def test_refused_call_leaves_the_layers_as_they_were(bad):
    model = dense_model()
    with pytest.raises((TypeError, ValueError)):
        keras_mp.compile(model, loss="mse", policy="mixed_float16", **bad)
    assert model.layers[0].compute_dtype == "float32"


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="needs a keras model"):
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


# wrap_optimizer.


def test_wrap_optimizer_leaves_bfloat16_alone():
    model = dense_model("mixed_bfloat16")
    optimizer = keras.optimizers.SGD()
    assert keras_mp.wrap_optimizer(model, optimizer) is optimizer
    wrapped = keras_mp.wrap_optimizer(model, optimizer, scaling="dynamic")
    assert wrapped.inner_optimizer is optimizer


# Saving.


@pytest.mark.parametrize("loaded_under", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("load", [keras_mp.load_model, keras.saving.load_model])
def test_model_file_resumes_as_if_never_stopped(load, loaded_under, tmp_path):
    policy = keras_mp.Policy("mixed_float16", float32=["dense_1"])
    model = stateful_model()
    model.layers[2].rate = 0.0  # Keras saves no random seeds
    rule = scaling.DynamicLossScale(initial_scale=64.0, growth_interval=3)
    keras_mp.compile(model, "adam", "binary_crossentropy", policy=policy, scaling=rule)
    model.fit(POISON, Y, batch_size=8, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    with keras_mp.policy_scope(loaded_under):
        loaded = load(tmp_path / "model.keras")
    assert loaded.optimizer.scaling == rule
    assert loaded.optimizer.stats() == model.optimizer.stats()
    assert [x.compute_dtype for x in loaded.layers] == [
        x.compute_dtype for x in model.layers
    ]
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    loaded.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    # The same arithmetic in two graphs, a few steps of Adam apart.
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_loaded_model_is_protected(tmp_path):
    model = stateful_model()
    keras_mp.compile(model, "adam", "binary_crossentropy", policy="mixed_float16")
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    before = state(loaded)
    skipped = loaded.optimizer.stats()["skipped"]
    loaded.train_on_batch(POISON[8:16], Y[8:16])
    assert loaded.optimizer.stats()["skipped"] == skipped + 1
    after = state(loaded)
    assert_same_state(before, {name: after[name] for name in before})


@pytest.mark.parametrize("explicit", [True, False])
def test_model_saved_with_keras_scaler_goes_on_with_ours(explicit, tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        model = stateful_model()
        optimizer = keras.optimizers.Adam(0.125)
        if explicit:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=64.0, dynamic_growth_steps=5
            )
        model.compile(optimizer, "binary_crossentropy", metrics=["mae"])
        model.fit(X, Y, batch_size=8, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras_mp.LossScaleOptimizer
    stats = loaded.optimizer.stats()
    assert stats["scale"] == float(model.optimizer.dynamic_scale)
    for a, b in zip(
        model.optimizer.inner_optimizer.variables,
        loaded.optimizer.inner_optimizer.variables,
        strict=True,
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    logs = loaded.fit(POISON, Y, batch_size=8, verbose=0).history
    assert set(logs) == {"loss", "mae"} and np.isfinite(logs["loss"]).all()
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    assert again.optimizer.stats() == loaded.optimizer.stats()


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
    for policy in ("mixed_bfloat16", "float32"):
        keras_mp.compile(model, "sgd", "mse", policy=policy)
        assert type(model.optimizer) is keras.optimizers.SGD


def test_loading_reports_rules_that_no_longer_match(tmp_path):
    with keras_mp.policy_scope(keras_mp.Policy("mixed_float16", ["attn/softmax"])):
        inputs = keras.Input((3, 4))
        attention = keras.layers.MultiHeadAttention(1, 4, name="attn")
        model = keras.Model(inputs, attention(inputs, inputs))
    model.save(tmp_path / "model.keras")  # the loaded softmax is called softmax_1
    with pytest.warns(UserWarning, match="'attn/softmax' matches no layer"):
        keras_mp.load_model(tmp_path / "model.keras")
