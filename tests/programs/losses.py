"""Losses, metrics and regularizers of one's own."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import POLICIES, Trial, ids, normal, program, uniform


def network(units, activation=None):
    return keras.Sequential(
        [layers.Dense(6, "relu"), layers.Dense(units, activation=activation)]
    )


@program()
def loss_function():
    def loss(y, p):
        return tf.reduce_mean(tf.square(y - p), axis=-1)

    return Trial(network(2), normal(4), normal(2), loss)


@program(fails=POLICIES)
def metric_function():
    """Keras gives a function the targets in float32 and the predictions in 16 bits."""

    def far(y, p):
        return tf.reduce_max(tf.abs(y - p), axis=-1)

    return Trial(network(2), normal(4), normal(2), options={"metrics": [far]})


@program()
def loss_class():
    class Focal(keras.losses.Loss):
        def call(self, y, p):
            y = tf.cast(y, p.dtype)
            p = tf.clip_by_value(p, 1e-4, 1 - 1e-4)
            right = y * p + (1 - y) * (1 - p)
            return -tf.reduce_mean((1 - right) ** 2 * tf.math.log(right), axis=-1)

    return Trial(network(1, "sigmoid"), normal(4), ids(2, 1), Focal())


@program()
def keras_losses_called_inside():
    def loss(y, p):
        return 0.5 * keras.losses.huber(y, p) + keras.losses.cosine_similarity(y, p)

    return Trial(network(3), normal(4), normal(3), loss)


@program()
def quantile_loss():
    def pinball(y, p):
        taus = tf.constant([0.1, 0.5, 0.9], dtype=p.dtype)
        error = y - p
        return tf.reduce_mean(tf.maximum(taus * error, (taus - 1) * error), axis=-1)

    return Trial(network(3), normal(4), normal(1), pinball)


@program()
def dice_loss():
    def dice(y, p):
        both = ops.sum(y * p, axis=(1, 2, 3))
        total = ops.sum(y, axis=(1, 2, 3)) + ops.sum(p, axis=(1, 2, 3))
        return 1 - (2 * both + 1) / (total + 1)

    model = keras.Sequential(
        [layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    return Trial(model, uniform(6, 6, 2), ids(2, 6, 6, 1).astype("float32"), dice)


@program()
def triplet_loss():
    """Distances of all pairs in a batch, with the labels as targets."""

    def loss(labels, embedded):
        distances = tf.reduce_sum(tf.square(embedded[:, None] - embedded[None]), -1)
        same = labels == tf.transpose(labels)
        furthest = tf.reduce_max(tf.where(same, distances, 0.0), axis=1)
        nearest = tf.reduce_min(tf.where(same, 1e4, distances), axis=1)
        return tf.nn.relu(furthest - tf.minimum(nearest, 10.0) + 1.0)

    class Embed(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = network(3)

        def call(self, x):
            return tf.math.l2_normalize(self.body(x), axis=-1)

    return Trial(Embed(), normal(4), ids(2, 1), loss)


@program()
def metric_class():
    class Ratio(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="ratio")
            self.total = self.add_variable((), "zeros", name="total")
            self.count = self.add_variable((), "zeros", name="count")

        def update_state(self, y, p, sample_weight=None):
            self.total.assign_add(tf.reduce_sum(tf.cast(p, "float32") * y))
            self.count.assign_add(tf.reduce_sum(tf.square(y)))

        def result(self):
            return self.total / (self.count + 1e-3)

    return Trial(
        network(2), normal(4), normal(2), options={"metrics": [Ratio(), "mae"]}
    )


@program(fails=POLICIES)
def add_loss():
    class Divergence(layers.Layer):
        def call(self, x):
            p = tf.nn.softmax(x)
            self.add_loss(0.1 * tf.reduce_mean(p * tf.math.log(p + 1e-3)))
            return p * x

    model = keras.Sequential([layers.Dense(4), Divergence(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program(fails=POLICIES)
def add_loss_of_the_model():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.out = layers.Dense(4), layers.Dense(1)

        def call(self, x):
            h = self.dense(x)
            self.add_loss(1e-2 * ops.sum(ops.square(h)))
            return self.out(h)

    return Trial(Net(), normal(4), normal(1))


@program(fails=POLICIES)
def activity_regularizers():
    class Sparse(keras.regularizers.Regularizer):
        def __call__(self, x):
            return 1e-2 * ops.mean(ops.abs(x)) * ops.max(x)

    class Around(layers.Layer):
        def __init__(self):
            super().__init__(activity_regularizer="l2")
            self.dense = layers.Dense(4, "softmax", activity_regularizer=Sparse())

        def call(self, x):
            return x[:, :4] * self.dense(x)

    model = keras.Sequential(
        [layers.Dense(6, kernel_regularizer="l2"), Around(), layers.Dense(1)]
    )
    return Trial(model, normal(4), normal(1))


@program()
def own_regularizer_and_constraint():
    def orthogonal(w):
        square = tf.matmul(w, w, transpose_a=True)
        return 1e-2 * tf.reduce_sum(tf.square(square - tf.eye(4)))

    dense = layers.Dense(
        4, kernel_regularizer=orthogonal, kernel_constraint="unit_norm"
    )
    return Trial(keras.Sequential([dense, layers.Dense(1)]), normal(4), normal(1))


@program()
def loss_of_the_layer():
    """An endpoint layer, which takes the targets as an input (keras.io)."""

    class Endpoint(layers.Layer):
        def __init__(self):
            super().__init__()
            self.loss = keras.losses.BinaryCrossentropy(from_logits=True)

        def call(self, targets, logits):
            self.add_loss(self.loss(targets, logits))
            return tf.nn.sigmoid(logits)

    x, y = keras.Input((4,), name="x"), keras.Input((1,), name="y")
    model = keras.Model([x, y], Endpoint()(y, layers.Dense(1)(x)))
    data = {"x": normal(4), "y": ids(2, 1, dtype="float32")}
    return Trial(model, data, loss=None)


@program()
def mixture_density():
    """An MDN: weights by softmax, deviations by exp, log-likelihood by logsumexp."""

    class Head(layers.Layer):
        def __init__(self):
            super().__init__()
            self.pi, self.mu, self.sigma = (layers.Dense(3) for _ in range(3))

        def call(self, x):
            pi = tf.nn.softmax(self.pi(x))
            return tf.stack([pi, self.mu(x), tf.exp(0.3 * self.sigma(x))], axis=-1)

    def loss(y, p):
        pi, mu, sigma = tf.unstack(p, axis=-1)
        logs = tf.math.log(pi) - tf.math.log(sigma) - 0.5 * ((y - mu) / sigma) ** 2
        return -tf.reduce_logsumexp(logs, axis=-1)

    model = keras.Sequential([layers.Dense(6, "tanh"), Head()])
    return Trial(model, normal(4), normal(1), loss)


@program()
def gaussian_head():
    """A mean and a variance from two layers, and their likelihood."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = layers.Dense(6, "tanh")
            self.mean, self.scale = layers.Dense(1), layers.Dense(1, "softplus")

        def call(self, x):
            x = self.body(x)
            return tf.concat([self.mean(x), self.scale(x) + 0.1], axis=-1)

    def loss(y, p):
        mean, scale = p[:, :1], p[:, 1:]
        return 0.5 * tf.square((y - mean) / scale) + tf.math.log(scale)

    return Trial(Net(), normal(4), normal(1), loss)


@program(fails=POLICIES)
def compute_loss():
    """A model with a ``compute_loss`` of its own and a ``Mean`` to track it."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.out = layers.Dense(4, "softmax"), layers.Dense(1)
            self.tracker = keras.metrics.Mean(name="own")

        def call(self, x):
            return self.out(self.dense(x) * x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_):
            loss = tf.reduce_mean(tf.math.log(tf.math.cosh(y - y_pred)))
            self.tracker.update_state(loss)
            return loss + sum(self.losses)

    return Trial(Net(), normal(4), normal(1), loss=None)
