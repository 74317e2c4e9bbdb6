"""Layers that keep and assign variables of their own."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import Trial, normal, program

# Keras rounds what is assigned; keras_mp computes it in float32 instead, and says so.
ROUNDED = "is assigned to variable"


def around(*middle):
    model = keras.Sequential([keras.Input((4,)), *middle, layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program()
def counter():
    class Count(layers.Layer):
        def build(self, shape):
            self.steps = self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False
            )

        def call(self, x, training=False):
            if training:
                self.steps.assign_add(1)
            return x / (1 + tf.cast(self.steps, x.dtype))

    return around(layers.Dense(4), Count())


@program()
def moving_average_by_cast():
    """A moving average that is updated with what was cast to its own dtype."""

    class Center(layers.Layer):
        def build(self, shape):
            self.mean = self.add_weight(
                shape=(shape[-1],), initializer="zeros", trainable=False, autocast=False
            )

        def call(self, x, training=False):
            if training:
                batch = tf.reduce_mean(tf.cast(x, "float32"), axis=0)
                self.mean.assign(0.9 * self.mean + 0.1 * batch)
            return x - tf.cast(self.mean.value, x.dtype)

    return around(layers.Dense(4), Center())


@program(says=ROUNDED)
def moving_average_in_the_compute_dtype():
    """The same without a cast: Keras casts the variable, and what is assigned."""

    class Center(layers.Layer):
        def build(self, shape):
            self.mean = self.add_weight(
                shape=(shape[-1],), initializer="zeros", trainable=False
            )

        def call(self, x, training=False):
            if training:
                self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, axis=0))
            return x - self.mean

    return around(layers.Dense(4), Center())


@program()
def metric_inside():
    class Watch(layers.Layer):
        def __init__(self):
            super().__init__()
            self.size = keras.metrics.Mean(name="size")

        def call(self, x):
            self.size.update_state(tf.reduce_mean(tf.abs(x)))
            return x * 1.5

    return around(layers.Dense(4, "softmax"), Watch())


@program(says=ROUNDED)
def memory_queue():
    """A queue of past features, as in MoCo, read by attention."""

    class Queue(layers.Layer):
        def build(self, shape):
            self.queue = self.add_weight(
                shape=(8, shape[-1]), initializer="glorot_uniform", trainable=False
            )

        def call(self, x, training=False):
            weights = tf.nn.softmax(tf.matmul(x, self.queue, transpose_b=True))
            y = x + tf.matmul(weights, self.queue)
            if training:
                new = tf.concat([x, self.queue[: 8 - x.shape[0]]], axis=0)
                self.queue.assign(new)
            return y

    inputs = keras.Input(batch_shape=(4, 4))
    outputs = layers.Dense(1)(Queue()(layers.Dense(4)(inputs)))
    return Trial(keras.Model(inputs, outputs), normal(4), normal(1))


@program()
def spectral_normalization():
    class Gate(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.SpectralNormalization(layers.Dense(4))

        def call(self, x, training=False):
            return x * self.dense(x, training=training)

    return around(layers.Dense(4), Gate())


@program()
def vector_quantizer():
    """Codes by one-hot, all in the compute dtype, with two losses (VQ-VAE)."""

    class Quantizer(layers.Layer):
        def build(self, shape):
            self.codes = self.add_weight(
                shape=(shape[-1], 8), initializer="random_normal", name="codes"
            )

        def call(self, x):
            codes = ops.convert_to_tensor(self.codes)
            distances = (
                ops.sum(x**2, axis=1, keepdims=True)
                + ops.sum(codes**2, axis=0)
                - 2 * ops.matmul(x, codes)
            )
            chosen = ops.one_hot(ops.argmin(distances, axis=1), 8, dtype=x.dtype)
            quantized = ops.matmul(chosen, ops.transpose(codes))
            self.add_loss(ops.mean((ops.stop_gradient(quantized) - x) ** 2))
            self.add_loss(0.25 * ops.mean((quantized - ops.stop_gradient(x)) ** 2))
            return x + ops.stop_gradient(quantized - x)

    # Codes that are as far apart as rounding sees are chosen as in float32.
    return around(Quantizer())


@program()
def batch_renormalization():
    """Statistics in float32 variables that Keras casts, used and updated."""

    class Renorm(layers.Layer):
        def build(self, shape):
            options = {"shape": (shape[-1],), "trainable": False}
            self.mean = self.add_weight(initializer="zeros", **options)
            self.deviation = self.add_weight(initializer="ones", **options)

        def call(self, x, training=False):
            if not training:
                return (x - self.mean) / self.deviation
            mean, variance = tf.nn.moments(x, axes=[0])
            deviation = tf.sqrt(variance + 1e-2)
            r = tf.stop_gradient(tf.clip_by_value(deviation / self.deviation, 0.5, 2.0))
            y = (x - mean) / deviation * r
            self.mean.assign_add(0.1 * (mean - self.mean))
            self.deviation.assign_add(0.1 * (deviation - self.deviation))
            return y

    return around(layers.Dense(4), Renorm())
