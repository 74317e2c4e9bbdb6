"""Samplers, codebooks and train steps that mix float32 into 16 bits."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import POLICIES, Trial, normal, program, uniform

RANDOM = "noise is drawn anew in each way"


def around(*middle):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), *middle, layers.Dense(1)]
    )
    return Trial(model, normal(4), normal(1))


class Sampling(layers.Layer):
    """keras.io's layer: ``keras.random.normal`` gives the global float type."""

    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(7)

    def call(self, inputs):
        mean, log_variance = inputs
        shape = ops.shape(mean)
        noise = keras.random.normal(shape, seed=self.seed)
        return mean + tf.exp(0.5 * log_variance) * noise


@program(fails=POLICIES, noise=RANDOM)
def sampling_layer():
    inputs = keras.Input((8,))
    z = Sampling()([layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    model = keras.Model(inputs, layers.Dense(8, "sigmoid")(z))
    x = uniform(8)
    return Trial(model, x, x, "binary_crossentropy")


@program(fails=POLICIES, noise=RANDOM, says="scale_loss")
def vae_of_keras_io():
    """The example as it is on keras.io: sampling, no ``call``, losses by hand."""

    class Vae(keras.Model):
        def __init__(self):
            super().__init__()
            inputs = keras.Input((8,))
            h = layers.Dense(6, "relu")(inputs)
            mean, log_variance = layers.Dense(2)(h), layers.Dense(2)(h)
            z = Sampling()([mean, log_variance])
            self.encoder = keras.Model(inputs, [mean, log_variance, z])
            self.decoder = keras.Sequential(
                [keras.Input((2,)), layers.Dense(6), layers.Dense(8, "sigmoid")]
            )

        def train_step(self, data):
            with tf.GradientTape() as tape:
                mean, log_variance, z = self.encoder(data)
                y = self.decoder(z)
                error = ops.mean(keras.losses.binary_crossentropy(data, y))
                kl = -0.5 * (
                    1 + log_variance - ops.square(mean) - ops.exp(log_variance)
                )
                loss = error + ops.mean(ops.sum(kl, axis=1))
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(
                zip(gradients, self.trainable_weights, strict=True)
            )
            return {"loss": loss}

    return Trial(Vae(), uniform(8), loss=None, calls=False)


@program(fails=POLICIES)
def moving_codebook():
    """A codebook that follows what is assigned to it, all in float32."""

    class Codebook(layers.Layer):
        def build(self, shape):
            self.codes = self.add_weight(
                shape=(8, shape[-1]), initializer="random_normal", trainable=False
            )
            self.counts = self.add_weight(
                shape=(8,), initializer="ones", trainable=False
            )

        def call(self, x, training=False):
            codes = self.codes.value
            distances = tf.reduce_sum((x[:, None] - codes[None]) ** 2, axis=-1)
            chosen = tf.one_hot(tf.argmin(distances, axis=-1), 8)
            if training:
                self.counts.assign(0.9 * self.counts + 0.1 * tf.reduce_sum(chosen, 0))
                target = tf.matmul(chosen, x, transpose_a=True)
                self.codes.assign(0.9 * codes + 0.1 * target)
            return x + tf.stop_gradient(tf.matmul(chosen, codes) - x)

    # Behind no other layer, so that rounding does not choose another code.
    model = keras.Sequential([keras.Input((4,)), Codebook(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program(fails=POLICIES)
def vector_quantizer_of_keras_io():
    """Codes by ``tf.one_hot`` without a dtype, times a weight in 16 bits."""

    class Quantizer(layers.Layer):
        def build(self, shape):
            self.codes = self.add_weight(
                shape=(shape[-1], 8), initializer="random_uniform", name="codes"
            )

        def call(self, x):
            similarity = tf.matmul(x, self.codes)
            distances = (
                tf.reduce_sum(x**2, axis=1, keepdims=True)
                + tf.reduce_sum(tf.square(self.codes), axis=0)
                - 2 * similarity
            )
            chosen = tf.one_hot(tf.argmin(distances, axis=1), 8)
            quantized = tf.matmul(chosen, self.codes, transpose_b=True)
            self.add_loss(tf.reduce_mean((tf.stop_gradient(quantized) - x) ** 2))
            self.add_loss(tf.reduce_mean((quantized - tf.stop_gradient(x)) ** 2))
            return x + tf.stop_gradient(quantized - x)

    model = keras.Sequential([keras.Input((4,)), Quantizer(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program(fails=POLICIES)
def moving_average_of_a_plain_variable():
    class Center(layers.Layer):
        def __init__(self):
            super().__init__()
            self.mean = tf.Variable(tf.zeros((4,)), trainable=False)

        def call(self, x, training=False):
            if training:
                batch = tf.reduce_mean(x, axis=0)
                self.mean.assign(0.9 * self.mean + 0.1 * batch)
            return x - self.mean

    return around(Center())


@program(fails=POLICIES)
def counter_without_a_cast():
    class Warm(layers.Layer):
        def build(self, shape):
            self.steps = self.add_weight(
                shape=(), initializer="ones", trainable=False, autocast=False
            )

        def call(self, x):
            return x * tf.minimum(1.0, 0.5 + self.steps.value)

    return around(Warm())


@program(fails=POLICIES)
def wasserstein_mixing():
    """A ``train_step`` that mixes real data with generated ones without a cast."""

    class Mixing(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
            self.judge = keras.Sequential([keras.Input((4,)), layers.Dense(1)])

        def train_step(self, real):
            with tf.GradientTape() as tape:
                mixed = 0.5 * real + 0.5 * self.body(tf.reverse(real, [1]))
                loss = tf.reduce_mean(tf.square(self.judge(mixed) - 1.0))
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            return {"loss": loss}

    return Trial(Mixing(), normal(4), loss=None, calls=False)


@program(fails=POLICIES)
def student_and_teacher_in_float32():
    """A teacher that was made in float32 is subtracted in a ``call``."""
    teacher = keras.Sequential([keras.Input((4,)), layers.Dense(4, dtype="float32")])
    teacher.trainable = False

    class Student(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.body = teacher, layers.Dense(4)
            self.out = layers.Dense(1)

        def call(self, x):
            h = self.body(x)
            self.add_loss(tf.reduce_mean(tf.square(self.teacher(x) - h)))
            return self.out(h)

    return Trial(Student(), normal(4), normal(1))
