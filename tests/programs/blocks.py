"""Layers of one's own with weights, gates, experts and normalizations."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import Trial, normal, program


def around(*middle):
    """Return a trial of layers between two of Keras's."""
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6), *middle, layers.Dense(1)]
    )
    return Trial(model, normal(5), normal(1))


@program()
def dense_of_weights():
    class Linear(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 4), name="w")
            self.b = self.add_weight(shape=(4,), initializer="zeros", name="b")

        def call(self, x):
            return tf.nn.relu(tf.matmul(x, self.w) + self.b)

    return around(Linear())


@program()
def gate():
    class Gate(layers.Layer):
        def __init__(self):
            super().__init__()
            self.gate = layers.Dense(6, "sigmoid")

        def call(self, x):
            return x * self.gate(x)

    return around(Gate())


@program()
def highway():
    class Highway(layers.Layer):
        def __init__(self):
            super().__init__()
            self.h = layers.Dense(6, "elu")
            self.t = layers.Dense(6, "hard_sigmoid")

        def call(self, x):
            t = self.t(x)
            return t * self.h(x) + (1.0 - t) * x

    return around(Highway(), Highway())


@program()
def swiglu():
    class SwiGlu(layers.Layer):
        def __init__(self):
            super().__init__()
            self.up = layers.Dense(12, use_bias=False)

        def call(self, x):
            a, b = tf.split(self.up(x), 2, axis=-1)
            return x + tf.nn.silu(a) * b

    return around(SwiGlu())


@program()
def mixture_of_experts():
    class Experts(layers.Layer):
        def __init__(self):
            super().__init__()
            self.gate = layers.Dense(3, "softmax")
            self.experts = [layers.Dense(4, "relu") for _ in range(3)]

        def call(self, x):
            outputs = tf.stack([expert(x) for expert in self.experts], axis=1)
            return tf.einsum("be,bed->bd", self.gate(x), outputs)

    return around(Experts())


@program()
def top_1_experts():
    """Experts by one-hot routing, the probability of the best as a gate."""

    class Switch(layers.Layer):
        def __init__(self):
            super().__init__()
            self.router = layers.Dense(3)
            self.experts = [layers.Dense(6) for _ in range(3)]

        def call(self, x):
            p = tf.nn.softmax(self.router(x))
            best = tf.one_hot(tf.argmax(p, axis=-1), 3, dtype=p.dtype)
            outputs = tf.stack([expert(x) for expert in self.experts], axis=1)
            return x + tf.reduce_sum((p * best)[..., None] * outputs, axis=1)

    return around(Switch())


@program()
def own_layer_normalization():
    class Norm(layers.Layer):
        def build(self, shape):
            self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones")
            self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros")

        def call(self, x):
            mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
            return self.gamma * (x - mean) / tf.sqrt(variance + 1e-3) + self.beta

    return around(Norm())


@program()
def own_rms_normalization():
    class Norm(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x):
            square = ops.mean(ops.square(x), axis=-1, keepdims=True)
            return x * ops.rsqrt(square + 1e-3) * self.scale

    return around(Norm())


@program()
def batch_normalization_of_tf():
    """``tf.nn.batch_normalization`` by the batch's own statistics."""

    class Norm(layers.Layer):
        def call(self, x):
            mean, variance = tf.nn.moments(x, axes=[0])
            return tf.nn.batch_normalization(x, mean, variance, None, None, 1e-2)

    return around(Norm(), layers.Dense(4))


@program()
def normalizations_added():
    """What normalizing layers give, added to what they were given."""

    class Norms(layers.Layer):
        def __init__(self):
            super().__init__()
            self.unit, self.layer = (
                layers.UnitNormalization(),
                layers.LayerNormalization(),
            )
            self.batch, self.rms = (
                layers.BatchNormalization(),
                layers.RMSNormalization(),
            )

        def call(self, x, training=False):
            x = x + self.unit(x) * self.layer(x)
            return x - self.batch(x, training=training) + self.rms(x)

    return around(Norms())


@program()
def activations_multiplied():
    """Activations of all sorts, by name, times the layer's input."""

    class Activations(layers.Layer):
        def __init__(self):
            super().__init__()
            names = ("softmax", "elu", "softplus", "exponential", "gelu", "log_softmax")
            self.dense = [layers.Dense(6, activation=name) for name in names]

        def call(self, x):
            for dense in self.dense:
                x = x + 0.1 * x * dense(x)
            return x

    return around(Activations())


@program()
def own_activations():
    """Activations that are functions: a lambda, one of tf.nn, one of keras.ops."""

    def mish(x):
        return x * ops.tanh(ops.softplus(x))

    return around(
        layers.Dense(6, activation=lambda x: x * tf.nn.sigmoid(x)),
        layers.Dense(6, activation=tf.nn.softmax),
        layers.Dense(6, activation=mish),
        layers.Activation(ops.exp),
    )


@program()
def lambdas():
    return around(
        layers.Lambda(lambda x: x * 2.0 + 1.0),
        layers.Lambda(lambda x: tf.nn.l2_normalize(x + 1e-2, axis=-1)),
        layers.Lambda(lambda x: tf.concat([x, tf.nn.softmax(x)], axis=-1)),
        layers.Lambda(lambda x: ops.expand_dims(ops.logsumexp(x, axis=-1), -1)),
    )


@program()
def functional_operations():
    """A Functional graph with operators and ``keras.ops`` between its layers."""
    inputs = keras.Input((5,))
    x = layers.Dense(6)(inputs)
    x = x / ops.sqrt(ops.sum(x * x, axis=-1, keepdims=True) + 1e-2)
    x = x * layers.Dense(6, "softmax")(inputs) + 0.5
    x = ops.concatenate([x, layers.Dense(2)(inputs), inputs], axis=-1)
    return Trial(keras.Model(inputs, layers.Dense(1)(x)), normal(5), normal(1))


@program()
def custom_gradient():
    class Reverse(layers.Layer):
        """Reverses the gradient, as in domain adaptation."""

        def call(self, x):
            @tf.custom_gradient
            def reverse(x):
                return tf.identity(x), lambda dy: -0.5 * dy

            return reverse(x)

    return around(Reverse(), layers.Dense(4))


@program()
def straight_through():
    """A rounding with the gradient of the identity."""

    class Round(layers.Layer):
        def call(self, x):
            return x + tf.stop_gradient(tf.round(4 * x) / 4 - x)

    # A number near the middle between two steps is rounded to either.
    inputs = keras.Input((5,))
    x = layers.Dense(1)(Round()(inputs))
    return Trial(keras.Model(inputs, x), normal(5).round(), normal(1))


@program()
def weight_normalization():
    """A wrapper whose kernel is a direction and a length."""

    class Normalized(layers.Layer):
        def build(self, shape):
            self.v = self.add_weight(shape=(shape[-1], 4), name="v")
            self.g = self.add_weight(shape=(4,), initializer="ones", name="g")

        def call(self, x):
            kernel = self.g * tf.nn.l2_normalize(self.v, axis=0)
            return tf.matmul(x, kernel)

    return around(Normalized())


@program()
def low_rank_adapter():
    """A frozen layer, and beside it two small trainable matrices."""

    class Lora(layers.Layer):
        def __init__(self):
            super().__init__()
            self.base = layers.Dense(6)
            self.base.trainable = False

        def build(self, shape):
            self.base.build(shape)
            self.a = self.add_weight(shape=(shape[-1], 2), name="a")
            self.b = self.add_weight(shape=(2, 6), name="b")

        def call(self, x):
            return self.base(x) + (x @ self.a) @ self.b * 0.5

    return around(Lora())


@program()
def polynomial():
    """Powers, minima and maxima, and a clip of one's own."""

    class Powers(layers.Layer):
        def call(self, x):
            x = tf.clip_by_value(x, -2.0, 2.0)
            return tf.concat([x, x**2, tf.maximum(x, 0.5), tf.abs(x) ** 1.5], axis=-1)

    return around(Powers())
