"""Skipped steps: what they change, with one optimizer and with several."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import (
    GENTLE,
    METRICS,
    POISON,
    Subclassed,
    X,
    Y,
    assert_same_state,
    state,
    stateful_model,
)

import keras_mp

# A skipped step changes nothing.

WAYS = ["graph", "jit", "eager", "train_on_batch"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [stateful_model, Subclassed])
def test_skipped_step_changes_nothing(make, way):
    model = make()
    keras_mp.compile(
        model,
        "adam",
        "binary_crossentropy",
        policy="mixed_float16",
        metrics=METRICS,
        weighted_metrics=["mse"],
        scaling=GENTLE,
        jit_compile=way == "jit",
        run_eagerly=way == "eager",
    )
    if way == "train_on_batch":
        run = model.train_on_batch
    else:
        run = model.make_train_function() or _one_step(model)
    run(X[:8], Y[:8])
    before = state(model)
    run(POISON[8:16], Y[8:16])
    assert model.optimizer.stats()["skipped"] == 1
    assert_same_state(before, state(model))
    run(X[16:24], Y[16:24])
    assert model.optimizer.stats()["applied"] == 2
    changed = state(model)
    assert np.isfinite(list(model.get_metrics_result().values())).all()
    assert all(np.isfinite(value).all() for value in changed.values())
    assert any((before[name] != changed[name]).any() for name in before)


def _one_step(model):
    def run(x, y):
        data = tf.data.Dataset.from_tensors((x, y))
        model.train_function(iter(data))

    return run


@pytest.mark.parametrize("way", WAYS)
def test_first_step_may_be_the_skipped_one(way):
    model = keras.Sequential(stateful_model().layers)  # not built
    keras_mp.compile(
        model,
        "adam",
        "binary_crossentropy",
        policy="mixed_float16",
        metrics=METRICS,
        jit_compile=way == "jit",
        run_eagerly=way == "eager",
    )
    if way == "train_on_batch":
        model.train_on_batch(POISON[8:16], Y[8:16])
    else:
        model.fit(POISON[8:16], Y[8:16], verbose=0)
    assert model.optimizer.stats()["skipped"] == 1
    assert all(np.isfinite(value).all() for value in state(model).values())
    assert np.isfinite(model.evaluate(X, Y, verbose=0)).all()


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_epoch_reports_the_batches_whose_loss_is_finite(steps_per_execution):
    def trained(x, y):
        keras.utils.set_random_seed(0)
        model = stateful_model()
        keras_mp.compile(
            model,
            "sgd",
            "binary_crossentropy",
            policy="mixed_float16",
            metrics=["mae"],
            scaling=GENTLE,
            steps_per_execution=steps_per_execution,
        )
        logs = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
        return model, logs

    poisoned, logs = trained(POISON, Y)
    clean, clean_logs = trained(
        np.delete(X, range(8, 16), 0), np.delete(Y, range(8, 16))
    )
    assert poisoned.optimizer.stats()["skipped"] == 1
    assert logs == clean_logs
    assert_same_state(state(clean), state(poisoned))


def test_custom_train_step_is_protected_and_keeps_its_own_logs():
    class Custom(Subclassed):
        def train_step(self, data):
            logs = super().train_step(data)
            return {**logs, "mine": keras.ops.array(7.0)}

    model = Custom()
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16", scaling=GENTLE)
    logs = model.fit(POISON, Y, batch_size=8, verbose=0, shuffle=False).history
    assert logs["mine"] == [7.0]
    assert model.own_count.numpy() == 3.0
    assert np.isfinite(logs["loss"]).all()


# Several optimizers.


class Gan(keras.Model):
    """Two networks, an optimizer each, one train_step."""

    def __init__(self):
        super().__init__()
        self.first, self.second = stateful_model(), stateful_model()

    def compile(self, first_optimizer, second_optimizer):
        super().compile(loss="binary_crossentropy")
        self.first_optimizer = first_optimizer
        self.second_optimizer = second_optimizer

    def train_step(self, data):
        x, y = data
        pairs = [
            (self.first, self.first_optimizer, x),
            (self.second, self.second_optimizer, x * 1e-3),
        ]
        for model, optimizer, x in pairs:
            with tf.GradientTape() as tape:
                y_pred = model(x, training=True)
                loss = self.compute_loss(y=y[:, None], y_pred=y_pred)
                scaled = optimizer.scale_loss(loss)
            grads = tape.gradient(scaled, model.trainable_weights)
            optimizer.apply_gradients(zip(grads, model.trainable_weights, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_several_optimizers(run_eagerly):
    with keras_mp.policy_scope("mixed_float16"):
        gan = Gan()
    gan.compile(
        keras_mp.wrap_optimizer(gan, "adam", scaling=GENTLE),
        keras_mp.wrap_optimizer(gan, keras.optimizers.SGD(0.5), scaling=GENTLE),
    )
    gan.run_eagerly = run_eagerly
    x = X.copy()
    x[8:16] = 1e5  # beyond float16 for the first network, within it for the second
    gan.fit(x, Y, batch_size=8, verbose=0, shuffle=False)
    assert gan.first_optimizer.stats()["skipped"] == 1
    assert gan.second_optimizer.stats()["skipped"] == 0
    assert all(np.isfinite(value).all() for value in state(gan).values())
