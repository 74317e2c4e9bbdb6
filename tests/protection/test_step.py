"""Skipped steps: what they change, with one optimizer and with several."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import (
    GENTLE,
    METRICS,
    POISON,
    Gan,
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


@pytest.mark.long
@pytest.mark.every(3)
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


@pytest.mark.every(2)
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


@pytest.mark.long
def test_states_of_a_recurrent_layer_are_put_back():
    def states_after(batches):
        keras.utils.set_random_seed(0)
        with keras_mp.policy_scope("mixed_float16"):
            model = keras.Sequential(
                [
                    keras.Input((2, 4), batch_size=8),
                    keras.layers.LSTM(3, stateful=True, dropout=0.5),
                    keras.layers.Dense(1),
                ]
            )
        keras_mp.compile(model, "sgd", "mse", scaling=GENTLE)
        for batch in batches:
            model.train_on_batch(batch.reshape(8, 2, 4), Y[:8])
        return [state.numpy() for state in model.layers[0].states]

    # The poisoned batch is skipped, and the next one goes on from the first.
    good, bad = X.reshape(2, 8, 8), np.full((8, 8), np.nan, "float32")
    for after, same in zip(
        states_after([good[0], bad, good[1]]), states_after(good), strict=True
    ):
        np.testing.assert_array_equal(after, same)


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


# Steps that scale their loss in ways of their own, or never.


def plain(self, loss):
    return loss


def by_hand(self, loss):
    return loss * self.optimizer.dynamic_scale


def unscaled_by_the_step(self, loss):
    return self.optimizer.scale_loss(loss)


def stepping(scaled, **options):
    """Return a model that is trained by gradients of ``scaled(model, loss)``."""

    class Own(keras.Sequential):
        def train_step(self, data):
            weights = self.trainable_variables
            grads = self.grads(*data)
            self.optimizer.apply(grads, weights)
            return {"own": tf.constant(0.0)}

        def grads(self, x, y):
            with tf.GradientTape() as tape:
                scaled_loss = scaled(self, self.compute_loss(x, y, self(x)))
            grads = tape.gradient(scaled_loss, self.trainable_variables)
            if scaled is unscaled_by_the_step:
                return self.optimizer.get_unscaled_gradients(grads)
            return grads

    dense = keras.layers.Dense(1, kernel_initializer="ones")
    model = Own([keras.Input((4,)), dense])
    keras_mp.compile(model, keras.optimizers.SGD(0.1), "mse", **options)
    return model


def trained(scaled, **options):
    keras.utils.set_random_seed(0)
    model = stepping(scaled, **options)
    model.fit(X, Y[:, None], batch_size=12, epochs=3, verbose=0, shuffle=False)
    return model.get_weights()


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=str)
def test_a_train_step_that_never_scales_its_loss_trains_with_one_warning(options):
    expected = trained(plain)
    with pytest.warns(UserWarning, match="taken as they are") as caught:
        weights = trained(plain, policy="mixed_float16", **options)
    assert len(caught) == 1 and "scale_loss" in str(caught[0].message)
    # Float16 rounds to 5e-4, and nine steps of gradients add up.
    np.testing.assert_allclose(weights[0], expected[0], atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=str)
@pytest.mark.parametrize("scaled", [by_hand, unscaled_by_the_step])
def test_a_train_step_that_scales_its_loss_in_its_own_way(scaled, options):
    weights = trained(scaled, policy="mixed_float16", scaling=GENTLE, **options)
    np.testing.assert_allclose(weights[0], trained(plain)[0], atol=1e-2)


@pytest.mark.long
def test_a_loss_that_is_scaled_where_it_is_traced_once():
    class Traced(keras.Sequential):
        @tf.function(reduce_retracing=True)
        def grads(self, x, y):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x))
                scaled = self.optimizer.scale_loss(loss)
            return tape.gradient(scaled, self.trainable_variables)

        def train_step(self, data):
            x, y = (tf.ensure_shape(each, (None, each.shape[1])) for each in data)
            self.optimizer.apply(self.grads(x, y), self.trainable_variables)
            return {"own": tf.constant(0.0)}

    dense = keras.layers.Dense(1, kernel_initializer="ones")
    model = Traced([keras.Input((4,)), dense])
    sgd = keras.optimizers.SGD(0.1)
    keras_mp.compile(model, sgd, "mse", policy="mixed_float16", scaling=GENTLE)
    for rows in (12, 12, 8):  # the step is traced anew for the last batch
        model.fit(X[:rows], Y[:rows, None], batch_size=rows, verbose=0, shuffle=False)
    weights = model.get_weights()
    reference = stepping(plain)
    for rows in (12, 12, 8):
        reference.fit(X[:rows], Y[:rows, None], rows, verbose=0, shuffle=False)
    np.testing.assert_allclose(weights[0], reference.get_weights()[0], atol=1e-2)


# Several optimizers.


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
