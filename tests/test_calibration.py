"""A measured first scale: the first step is applied, and nothing else changes."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp.scaling import DynamicLossScale, LogNormalLossScale, StaticLossScale

X = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
Y = 30.0 * X[:, :1]  # gradients overflow at the scale 2**15


def made(scaling=None, optimizer="sgd", built=True, **kwargs):
    keras.utils.set_random_seed(0)
    first = [keras.Input((8,))] if built else []
    hidden = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5)]
    model = keras.Sequential([*first, *hidden, layers.Dense(8), layers.Dense(1)])
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(1e-6)
    policy = "mixed_float16"
    keras_mp.compile(model, optimizer, "mse", policy=policy, scaling=scaling, **kwargs)
    return model


def scale_of(model):
    return model.optimizer.stats()["scale"]


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {
        each.path: np.asarray(each).tolist()
        for each in variables
        if "dynamic_scale" not in each.path
    }


def is_applied_at(scale):
    """Return whether the first step of a new model is applied at a loss scale."""
    model = made(DynamicLossScale(initial_scale=scale))
    model.fit(X, Y, batch_size=32, shuffle=False, verbose=0)
    return model.optimizer.stats()["applied"] == 1


@pytest.mark.long
def test_the_first_step_is_applied_with_the_headroom_that_was_asked_for():
    model = made()
    before = state_of(model)
    scale = keras_mp.calibrate_scale(model, X, Y, headroom=3)
    assert scale == scale_of(model) < 2.0**15
    assert state_of(model) == before
    assert is_applied_at(scale * 2**3) and not is_applied_at(scale * 2**4)


@pytest.mark.parametrize("headroom", [0, 1, 5])
def test_each_bit_of_headroom_halves_the_scale(headroom):
    largest = keras_mp.calibrate_scale(made(), X, Y, headroom=0)
    assert keras_mp.calibrate_scale(made(), X, Y, headroom=headroom) == (
        largest / 2**headroom
    )


@pytest.mark.parametrize(
    "rule, factor, expected",
    [
        (DynamicLossScale(max_scale=2.0**16), 1e-6, 2.0**16),
        (DynamicLossScale(min_scale=2.0**14), 1.0, 2.0**14),
        (LogNormalLossScale(), 1e-9, 2.0**24),
    ],
)
def test_the_scale_stays_in_the_range_of_the_rule(rule, factor, expected):
    model = made(rule)
    assert keras_mp.calibrate_scale(model, X * factor, Y * factor) == expected


def test_a_batch_without_gradients_gets_the_largest_scale():
    model = made()
    assert keras_mp.calibrate_scale(model, X, Y, np.zeros(32)) == 2.0**24


def test_a_loss_of_ones_own():
    model = made()
    scale = keras_mp.calibrate_scale(model, X, Y, loss=keras.losses.MeanSquaredError())
    assert scale == keras_mp.calibrate_scale(model, X, Y)


def test_the_layer_that_is_not_finite_is_named():
    model = made()
    model.layers[0].kernel.assign(model.layers[0].kernel * 1e6)
    with pytest.raises(ValueError, match="dense, output .forward.: overflow") as error:
        keras_mp.calibrate_scale(model, X, Y)
    assert "keras_mp.diagnose" in str(error.value)
    assert scale_of(model) == 2.0**15


class Gan(keras.Model):
    pass


@pytest.mark.parametrize(
    "call, error, expected",
    [
        (lambda: keras_mp.calibrate_scale(None, X), TypeError, "a Keras model"),
        (lambda: keras_mp.calibrate_scale(Gan(), X), ValueError, "with a `call`"),
        (
            lambda: keras_mp.calibrate_scale(made(), X, Y, headroom=-1),
            ValueError,
            "from 0 to 253 bits",
        ),
        (
            lambda: keras_mp.calibrate_scale(made(), X, Y, headroom=1.5),
            TypeError,
            "whole number",
        ),
        (
            lambda: keras_mp.calibrate_scale(made(StaticLossScale(8.0)), X, Y),
            ValueError,
            "scale may change",
        ),
        (lambda: keras_mp.calibrate_scale(plain(), X, Y), ValueError, "not compiled"),
        (
            lambda: keras_mp.calibrate_scale(plain("sgd"), X, Y),
            ValueError,
            "LossScaleOptimizer",
        ),
        (
            lambda: made(
                "calibrate",
                keras_mp.LossScaleOptimizer("sgd", scaling=StaticLossScale(8.0)),
            ),
            ValueError,
            "scale may change",
        ),
    ],
)
def test_what_cannot_be_calibrated(call, error, expected):
    with pytest.raises(error, match=expected):
        call()


def plain(optimizer=None):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    if optimizer:
        model.compile(optimizer, "mse")
    return model


# Before the first step of `fit`.


def batches(rows=32):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(rows)


FITS = {
    "arrays": ({}, lambda m: m.fit(X, Y, batch_size=32, shuffle=False, verbose=0)),
    "tf.data": ({}, lambda m: m.fit(batches(), shuffle=False, verbose=0)),
    "generator": (
        {},
        lambda m: m.fit(
            ((X, Y) for _ in [0]), steps_per_epoch=1, shuffle=False, verbose=0
        ),
    ),
    "eagerly": (
        {"run_eagerly": True},
        lambda m: m.fit(batches(), shuffle=False, verbose=0),
    ),
    "unbuilt": ({"built": False}, lambda m: m.fit(batches(), shuffle=False, verbose=0)),
    "XLA": (
        {"jit_compile": True},
        lambda m: m.fit(batches(), shuffle=False, verbose=0),
    ),
    "train_on_batch": ({}, lambda m: m.train_on_batch(X, Y)),
}


@pytest.fixture(scope="module")
def wanted():
    return keras_mp.calibrate_scale(made(), X, Y)


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("kwargs, fit", FITS.values(), ids=FITS)
def test_the_first_batch_sets_the_scale_and_nothing_else(kwargs, fit, wanted):
    model, other = (made(s, **kwargs) for s in ("calibrate", DynamicLossScale(wanted)))
    fit(model)
    fit(other)
    assert scale_of(model) == wanted
    assert model.optimizer.stats()["applied"] == 1
    assert list(state_of(model).values()) == list(state_of(other).values())


@pytest.mark.long
@pytest.mark.parametrize("several", [2, 3])
def test_several_steps_in_one_execution(several):
    kwargs = {"steps_per_execution": several}
    scale = keras_mp.calibrate_scale(made(), X[:8], Y[:8])
    model, other = (made(s, **kwargs) for s in ("calibrate", DynamicLossScale(scale)))
    for each in (model, other):
        each.fit(batches(8), shuffle=False, epochs=2, verbose=0)
        assert each.optimizer.stats()["applied"] == 8
    assert list(state_of(model).values()) == list(state_of(other).values())


@pytest.mark.long
def test_accumulated_gradients():
    optimizer = keras.optimizers.SGD(1e-6, gradient_accumulation_steps=2)
    model = made("calibrate", optimizer)
    model.fit(batches(8), shuffle=False, verbose=0)
    stats = model.optimizer.stats()
    assert stats["skipped"] == 0 and stats["steps"] == 4
    assert int(model.optimizer.iterations) == 2


def test_several_inputs_and_weights_of_samples():
    def model_of(scaling):
        keras.utils.set_random_seed(0)
        inputs = {name: keras.Input((8,), name=name) for name in "ab"}
        hidden = layers.Dense(8)(layers.Concatenate()([*inputs.values()]))
        model = keras.Model(inputs, layers.Dense(1)(hidden))
        policy = "mixed_float16"
        keras_mp.compile(model, "sgd", "mse", policy=policy, scaling=scaling)
        return model

    x, weights = {"a": X, "b": -X}, np.full(32, 1e3, "float32")
    scale = keras_mp.calibrate_scale(model_of(None), x, Y, weights)
    model = model_of("calibrate")
    model.fit(x, Y, 32, sample_weight=weights, shuffle=False, verbose=0)
    assert scale_of(model) == scale < 2.0**10
    assert model.optimizer.stats()["applied"] == 1


def test_the_rule_of_an_optimizer_is_kept():
    rule = DynamicLossScale(growth_interval=7)
    model = made("calibrate", keras_mp.LossScaleOptimizer("sgd", scaling=rule))
    model.fit(batches(), shuffle=False, verbose=0)
    assert model.optimizer.scaling == rule and scale_of(model) < 2.0**15


@pytest.mark.long
def test_only_the_first_fit_calibrates():
    model = made("calibrate")
    model.fit(batches(), shuffle=False, verbose=0)
    model.optimizer.set_scale(4.0)
    model.fit(batches(), shuffle=False, verbose=0)
    assert scale_of(model) == 4.0


def test_a_batch_that_is_not_finite_ends_fit_and_the_next_fit_calibrates():
    model = made("calibrate")
    with pytest.raises(ValueError, match="row 3 holds NaN"):
        model.fit(np.where(X == X[3, 0], np.nan, X), Y, batch_size=32, shuffle=False)
    model.fit(batches(), shuffle=False, verbose=0)
    assert model.optimizer.stats()["applied"] == 1 and scale_of(model) < 2.0**15


@pytest.mark.long
def test_a_loaded_scale_is_kept(tmp_path):
    model = made("calibrate")
    model.fit(batches(), shuffle=False, verbose=0)
    model.optimizer.set_scale(4.0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    loaded.fit(batches(), shuffle=False, verbose=0)
    assert scale_of(loaded) == 4.0 and loaded.optimizer.stats()["applied"] == 2
    # Compiled again, it has the steps of the file, too.
    again = made("calibrate")
    again.optimizer.build(again.trainable_variables)
    again.optimizer.load_own_variables(stored(model.optimizer))
    again.fit(batches(), shuffle=False, verbose=0)
    assert scale_of(again) == 4.0


def stored(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def test_a_loop_of_ones_own():
    model = made()
    scale = keras_mp.calibrate_scale(model, X, Y)
    assert float(model.optimizer.scale_loss(1.0)) == scale


def test_a_callback_that_reads_batches_reads_the_first_too():
    from keras_mp.recording import BatchCallback

    class Counts(BatchCallback):
        def __init__(self):
            super().__init__()
            self.steps = []

        def before_step(self, step, data):
            self.steps.append(step)

    counts, model = Counts(), made("calibrate", steps_per_execution=2)
    model.fit(batches(8), shuffle=False, verbose=0, callbacks=[counts])
    assert counts.steps == [1, 2, 3, 4] and model.optimizer.stats()["applied"] == 4
