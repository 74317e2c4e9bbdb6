"""Checkpoints of this class, of Keras's and of the bare optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.updates import DIRECT, RULES, assert_same, gradients, values, variables

import keras_mp


def trained(cls, inner, **kwargs):
    optimizer = cls(inner, **kwargs)
    weights = variables()
    scale = 8.0
    for finite in (True, True, False):
        grads = [np.full((3,), scale if finite else np.inf), np.ones((2, 1))]
        optimizer.apply([keras.ops.array(np.float32(g)) for g in grads], weights)
    return optimizer


def stored(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def fresh(cls, inner, **kwargs):
    optimizer = cls(inner, **kwargs)
    optimizer.build(variables())
    return optimizer


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@DIRECT
def test_state_survives_saving(rule):
    optimizer = trained(keras_mp.LossScaleOptimizer, "adam", scaling=rule)
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam", scaling=rule)
    loaded.load_own_variables(stored(optimizer))
    assert loaded.stats() == optimizer.stats()
    assert_same(values(loaded.variables), values(optimizer.variables))


@DIRECT
def test_checkpoint_from_before_a_counter_was_there():
    optimizer = trained(keras_mp.LossScaleOptimizer, "adam")
    optimizer.count_loss(True)
    store = stored(optimizer)
    del store["nonfinite_losses"]
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam")
    loaded.load_own_variables(store)
    assert optimizer.stats()["nonfinite_losses"] == 1
    assert loaded.stats() == optimizer.stats() | {"nonfinite_losses": 0}


@DIRECT
def test_keras_checkpoint_brings_moments_and_scale():
    kwargs = {"initial_scale": 8.0, "dynamic_growth_steps": 7}
    keras_own = trained(
        keras.optimizers.LossScaleOptimizer, keras.optimizers.Adam(), **kwargs
    )
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam", **kwargs)
    loaded.load_own_variables(stored(keras_own))
    assert float(loaded.dynamic_scale) == float(keras_own.dynamic_scale) == 4.0
    assert int(loaded.step_counter) == int(keras_own.step_counter)
    assert_same(
        values(loaded.inner_optimizer.variables),
        values(keras_own.inner_optimizer.variables),
    )


@pytest.mark.parametrize(("saved", "expected"), [(0.0, 1.0), (np.inf, 2.0**24)])
@DIRECT
def test_keras_checkpoint_with_a_ruined_scale_is_mended(saved, expected):
    keras_own = trained(keras.optimizers.LossScaleOptimizer, keras.optimizers.Adam())
    keras_own.dynamic_scale.assign(saved)
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam")
    loaded.load_own_variables(stored(keras_own))
    assert loaded.stats()["scale"] == expected


def test_bare_optimizer_checkpoint_brings_its_moments():
    bare = keras.optimizers.Adam()
    bare.apply([keras.ops.array(np.float32(g)) for g in gradients()], variables())
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam", initial_scale=8.0)
    loaded.load_own_variables(stored(bare))
    assert_same(values(loaded.inner_optimizer.variables), values(bare.variables))
    assert loaded.stats()["scale"] == 8.0


def test_foreign_checkpoint_is_skipped_with_a_warning():
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam")
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        loaded.load_own_variables({"0": np.zeros(1)})


@pytest.mark.long
@pytest.mark.parametrize("way", ["keras", "ours"])
@DIRECT
def test_model_file_of_either_class_resumes(way, tmp_path):
    cls = {
        "keras": keras.optimizers.LossScaleOptimizer,
        "ours": keras_mp.LossScaleOptimizer,
    }[way]
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = cls(keras.optimizers.Adam(0.1), initial_scale=8.0)
    model.compile(optimizer, loss="mse")
    model.fit(x, y, epochs=3, batch_size=8, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    resumed = keras.models.clone_model(model)
    keras_mp.compile(resumed, keras.optimizers.Adam(0.1), "mse", scaling="dynamic")
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "m.weights.h5")
    assert int(resumed.optimizer.iterations) == 3
    assert float(resumed.optimizer.dynamic_scale) == 8.0
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    resumed.fit(x, y, epochs=1, batch_size=8, verbose=0)
    # The same arithmetic in two graphs: within one rounding of float32.
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def scaled_model(cls):
    """Return a model with a scaler of ``cls``, which backs off and grows soon."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = cls(
        keras.optimizers.Adam(0.1), initial_scale=64.0, dynamic_growth_steps=3
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    optimizer.build(model.trainable_variables)
    return model


def train(model, factors):
    """Train a step for each factor of the data; return the scale after each."""
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    scales = []
    for factor in factors:
        model.train_on_batch(x * np.float32(factor), y)
        scales.append(float(model.optimizer.dynamic_scale))
    return scales


def through_file(saved, fresh, path):
    saved.save_weights(path / "m.weights.h5")
    fresh.load_weights(path / "m.weights.h5")


def through_checkpoint(saved, fresh, path):
    written = tf.train.Checkpoint(model=saved, optimizer=saved.optimizer)
    written.write(str(path / "m"))
    read = tf.train.Checkpoint(model=fresh, optimizer=fresh.optimizer)
    read.read(str(path / "m")).expect_partial()


@pytest.mark.parametrize("way", [through_file, through_checkpoint])
def test_what_keras_has_begun_goes_on_to_the_bit(way, tmp_path):
    """State, and the scales of the next steps: the window of growth is half full."""
    theirs = scaled_model(keras.optimizers.LossScaleOptimizer)
    assert train(theirs, [1, 1e30, 1, 1]) == [64.0, 32.0, 32.0, 32.0]
    ours = scaled_model(keras_mp.LossScaleOptimizer)
    way(theirs, ours, tmp_path)
    assert_same(values(ours.variables), values(theirs.variables))
    assert_same(
        values(ours.optimizer.variables[:4] + ours.optimizer.inner_optimizer.variables),
        values(theirs.optimizer.variables),
    )
    assert int(ours.optimizer.iterations) == 3
    rest = [1, 1, 1, 1, 1e30, 1]
    assert train(ours, rest) == train(theirs, rest)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        # Weights of about 1, in six updates that round in another order.
        np.testing.assert_allclose(a, b, atol=6 * 2**-23)


def test_what_keras_has_begun_goes_on_from_a_model_file(tmp_path):
    theirs = scaled_model(keras.optimizers.LossScaleOptimizer)
    train(theirs, [1, 1e30, 1, 1])
    theirs.save(tmp_path / "m.keras")
    ours = keras_mp.load_model(tmp_path / "m.keras")
    assert type(ours.optimizer) is keras_mp.LossScaleOptimizer
    assert ours.optimizer.scaling.growth_interval == 3
    assert_same(
        values(ours.optimizer.variables[:4] + ours.optimizer.inner_optimizer.variables),
        values(theirs.optimizer.variables),
    )
    rest = [1, 1, 1, 1, 1e30, 1]
    assert train(ours, rest) == train(theirs, rest)


@DIRECT
def test_variables_of_a_subclass_are_saved():
    class Counting(keras_mp.LossScaleOptimizer):
        def __init__(self, inner_optimizer):
            super().__init__(inner_optimizer)
            self.calls = self.add_variable((), name="calls")

    optimizer, loaded = (fresh(Counting, "sgd") for _ in range(2))
    optimizer.calls.assign(7.0)
    loaded.load_own_variables(stored(optimizer))
    assert float(loaded.calls) == 7.0
