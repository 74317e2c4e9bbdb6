"""Steps get float32 of models; a step that fails on it gets what Keras would give."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mp
from keras_mp import guards, policy_scope

X = np.full((8, 4), 300.0, "float32")
Y = np.ones((8, 1), "float32")


class Base(keras.Model):
    """A ``train_step`` of its own, as Keras's guides have them; and no ``call``."""

    def __init__(self):
        super().__init__()
        self.first = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
        self.second = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        self.seen = []

    def loss_of(self, y, predicted):
        return keras.ops.mean(keras.losses.mean_squared_error(y, predicted))

    def train_step(self, data):
        x, y = data[:2]
        with tf.GradientTape() as tape:
            predicted = self.second(self.first(x))
            self.seen.append(keras.backend.standardize_dtype(predicted.dtype))
            loss = self.loss_of(y, predicted)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        return {"loss": loss}


class Narrow(Base):
    """Multiplies what a model returns with a tensor of its compute dtype."""

    def loss_of(self, y, predicted):
        weights = tf.cast(1e-3 * y, self.compute_dtype)
        return tf.cast(tf.reduce_mean(predicted * weights), "float32")


class Wide(Base):
    """Multiplies what a single layer returns with a float32 tensor."""

    def __init__(self):
        keras.Model.__init__(self)
        self.seen = []
        self.first, self.second = layers.Dense(4), layers.Dense(1)
        self.first.build((None, 4))
        self.second.build((None, 4))

    def loss_of(self, y, predicted):
        return tf.reduce_mean(predicted * tf.ones_like(y))


def made(cls, **options):
    with policy_scope("mixed_float16"):
        model = cls()
    keras_mp.compile(model, keras.optimizers.SGD(0.0), **options)
    return model


def test_submodels_return_what_a_loss_needs():
    model = made(Base)
    model.fit(X, 1e4 * Y, verbose=0)
    assert set(model.seen) == {"float32"}  # squares of 1e4 are beyond float16


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_a_step_that_needs_16_bits_gets_them_and_says_so(options):
    model = made(Narrow, **options)
    with pytest.warns(UserWarning, match="fails on the float32"):
        model.fit(X, Y, verbose=0)
    assert model.seen[-1] == "float16"
    assert not guards.are_steps_guarded(model)
    model.fit(X, Y, verbose=0)  # and warns no more


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_a_step_that_mixes_dtypes_gets_float32_of_all_layers(options):
    model = made(Wide, **options)
    with pytest.warns(UserWarning, match="All layers hand float32"):
        model.fit(X, Y, verbose=0)
    assert model.seen[-1] == "float32"
    assert model.first.compute_dtype == "float16"
    assert guards.are_steps_guarded(model)
    model.fit(X, Y, verbose=0)  # and warns no more


def test_train_on_batch_falls_back_too():
    model = made(Narrow)
    with pytest.warns(UserWarning, match="fails on the float32"):
        model.train_on_batch(X, Y)


def test_other_errors_are_raised():
    class Broken(Base):
        def loss_of(self, y, predicted):
            raise ValueError("no loss today")

    model = made(Broken)
    with pytest.raises(ValueError, match="no loss today"):
        model.fit(X, Y, verbose=0)
    assert guards.are_steps_guarded(model)


def test_a_predict_step_of_its_own_returns_float32():
    class Predicts(Base):
        def predict_step(self, data):
            return {"x": tf.cast(data, "float16"), "n": tf.shape(data)}

    model = made(Predicts)
    result = model.predict(X, verbose=0)
    assert result["x"].dtype == "float32" and result["n"].dtype == "int32"


def test_metrics_and_losses_get_float32_of_a_model_compiled_by_keras():
    seen = []

    def loss(y, predicted):
        seen.append(keras.backend.standardize_dtype(predicted.dtype))
        return keras.losses.mean_squared_error(y, predicted)

    with policy_scope("mixed_float16"):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", loss, metrics=[loss])
    model.fit(X, Y, verbose=0)
    assert set(seen) == {"float32"}
