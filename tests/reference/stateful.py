"""A model with all kinds of state, and data of which one batch overflows float16."""

import keras
import numpy as np
import tensorflow as tf

from keras_mp import scaling

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
POISON = X.copy()
POISON[8:16] = 1e30  # beyond float16: of batches of 8, the second overflows


def stateful_model():
    """Return a model with every kind of state a forward pass changes."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(1, activation="sigmoid", dtype="float32"),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = stateful_model()
        self.own_count = self.add_weight(
            shape=(), initializer="zeros", name="own_count", trainable=False
        )

    def call(self, x, training=None):
        self.own_count.assign_add(1.0)
        return self.inner(x, training=training)


METRICS = ["accuracy", "AUC", "mae"]

# Small enough that only poisoned batches overflow.
GENTLE = scaling.StaticLossScale(8.0)


def state(model):
    """Return every variable of the model, in order."""
    return {f"{i} {v.name}": v.numpy().copy() for i, v in enumerate(model.variables)}


def assert_same_state(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


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
