"""Models with a ``train_step`` of their own, and loops without ``fit``."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import BATCH, POLICIES, Trial, ids, normal, program, uniform

# Keras's guides do not scale the loss in a ``train_step``.
UNSCALED = "scale_loss"


def classifier(units=3):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(units)]
    )


class Own(keras.Model):
    """A model around a network, with the train_step of Keras's guide."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, x):
        return self.network(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
            scaled = self.optimizer.scale_loss(loss)
        self.update(tape, scaled)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}

    def update(self, tape, loss):
        weights = self.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)


@program()
def scaled_step():
    """The guide's ``train_step``, with the loss scaled."""
    return Trial(Own(classifier(1)), normal(4), normal(1), options={"metrics": ["mae"]})


@program(says=UNSCALED)
def unscaled_step():
    """The guide's ``train_step`` as it is: the loss is not scaled."""

    class Unscaled(Own):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            self.update(tape, loss)
            return {"loss": loss}

    return Trial(Unscaled(classifier(1)), normal(4), normal(1))


@program(fails=POLICIES)
def errors_by_hand():
    """Targets less predictions in both steps, and logs that are no metrics."""

    class Two(Own):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                error = y - self(x, training=True)
                loss = tf.reduce_mean(tf.square(error))
                scaled = self.optimizer.scale_loss(loss)
            self.update(tape, scaled)
            return {"loss": loss, "largest": tf.reduce_max(tf.abs(error))}

        def test_step(self, data):
            x, y = data
            return {"loss": tf.reduce_mean(tf.square(y - self(x)))}

    return Trial(Two(classifier(1)), normal(4), normal(1))


@program()
def distillation(compiled):
    """keras.io's distiller: a compiled teacher, a softened KL divergence."""
    teacher, student = classifier(), classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(teacher, "sgd", loss)
    teacher.fit(normal(4), ids(3), batch_size=BATCH, verbose=0)

    class Distiller(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = teacher, student
            self.divergence = keras.losses.KLDivergence()

        def call(self, x):
            return self.student(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_):
            soft = self.teacher(x, training=False)
            divergence = self.divergence(
                ops.softmax(soft / 3.0, axis=1), ops.softmax(y_pred / 3.0, axis=1)
            )
            return 0.1 * loss(y, y_pred) + 0.9 * 9.0 * divergence

    return Trial(Distiller(), normal(4), ids(3), loss=None)


@program()
def distillation_of_features(compiled):
    """A teacher that was compiled, subtracted from what a student gives."""
    teacher = keras.Sequential([keras.Input((4,)), layers.Dense(6, "softmax")])
    compiled(teacher, "sgd", "mse")
    teacher.trainable = False

    class Student(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.body, self.out = (
                teacher,
                layers.Dense(6),
                layers.Dense(1),
            )

        def call(self, x):
            h = self.body(x)
            error = tf.square(self.teacher(x) - h)
            self.add_loss(tf.reduce_mean(tf.cast(error, "float32")))
            return self.out(h)

    return Trial(Student(), normal(4), normal(1))


@program()
def two_views():
    """SimCLR: two noisy views, products of all pairs, a cross-entropy by row."""

    class SimClr(Own):
        def train_step(self, data):
            noise = 0.1 * tf.constant([[1.0, -1.0, 1.0, -1.0]])
            with tf.GradientTape() as tape:
                a = tf.math.l2_normalize(self.network(data + noise), axis=-1)
                b = tf.math.l2_normalize(self.network(data - noise), axis=-1)
                logits = tf.matmul(a, b, transpose_b=True) / 0.5
                loss = keras.losses.sparse_categorical_crossentropy(
                    tf.range(BATCH), logits, from_logits=True
                )
                loss = tf.reduce_mean(loss)
                scaled = self.optimizer.scale_loss(loss)
            self.update(tape, scaled)
            return {"loss": loss}

    return Trial(SimClr(classifier()), normal(4), loss=None, calls=False)


@program()
def momentum_teacher():
    """A second network follows the first as a moving average (BYOL, mean teacher)."""

    class Student(Own):
        def __init__(self):
            super().__init__(classifier())
            self.teacher = classifier()
            self.teacher.set_weights(self.network.get_weights())
            self.teacher.trainable = False

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                p = self.network(x, training=True)
                target = tf.stop_gradient(self.teacher(x * 0.9, training=True))
                loss = tf.reduce_mean(self.compute_loss(y=y, y_pred=p))
                loss += tf.cast(tf.reduce_mean(tf.square(p - target)), loss.dtype)
                scaled = self.optimizer.scale_loss(loss)
            self.update(tape, scaled)
            pairs = zip(self.teacher.weights, self.network.weights, strict=True)
            for mine, other in pairs:
                mine.assign(0.9 * mine + 0.1 * other)
            return {"loss": loss}

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(Student(), normal(4), ids(3), loss)


@program(fails=POLICIES)
def adversarial_examples():
    """Gradients with respect to the input, by a tape within the step (FGSM)."""

    class Robust(Own):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            x = x + 0.1 * tf.math.tanh(inner.gradient(loss, x))
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
                scaled = self.optimizer.scale_loss(loss)
            self.update(tape, scaled)
            return {"loss": loss}

    return Trial(Robust(classifier(1)), normal(4), normal(1))


@program()
def gradients_as_outputs():
    """The derivative of a network by its input is part of the loss (a PINN)."""

    class Physics(Own):
        def train_step(self, data):
            x, _ = data
            with tf.GradientTape() as tape:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    u = self(x, training=True)
                slope = inner.gradient(u, x)
                loss = tf.reduce_mean(tf.square(slope + tf.cast(u, slope.dtype)))
                scaled = self.optimizer.scale_loss(loss)
            self.update(tape, scaled)
            return {"loss": loss}

    network = keras.Sequential([layers.Dense(6, "tanh"), layers.Dense(1)])
    return Trial(Physics(network), uniform(1), uniform(1))


@program(fails=POLICIES)
def sharpness_aware():
    """SAM: a step uphill, a second gradient, and back."""

    class Sharpness(Own):
        def gradients(self, x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
                scaled = self.optimizer.scale_loss(loss)
            return loss, tape.gradient(scaled, self.trainable_weights)

        def train_step(self, data):
            loss, first = self.gradients(*data)
            norm = tf.linalg.global_norm(first) + 1e-12
            ways = [0.05 * gradient / norm for gradient in first]
            for weight, way in zip(self.trainable_weights, ways, strict=True):
                weight.assign_add(way)
            _, second = self.gradients(*data)
            for weight, way in zip(self.trainable_weights, ways, strict=True):
                weight.assign_sub(way)
            self.optimizer.apply(second, self.trainable_weights)
            return {"loss": loss}

    return Trial(Sharpness(classifier(1)), normal(4), normal(1))


@program(fails=POLICIES)
def own_test_and_predict_step():
    class Net(Own):
        def test_step(self, data):
            x, y = data
            return {"loss": tf.reduce_mean(tf.square(self(x) - y))}

        def predict_step(self, data):
            return {"p": self(data), "softmax": tf.nn.softmax(self(data))}

    return Trial(Net(classifier(1)), normal(4), normal(1))


@program()
def own_loop():
    """A loop of one's own in a ``tf.function``."""

    losses = keras.losses.MeanSquaredError()

    def loop(model, optimizer, x, y):
        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = losses(y, model(x, training=True))
                scaled = optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        optimizer.build(model.trainable_variables)
        starts = range(0, len(x), BATCH)
        return [
            step(x[start : start + BATCH], y[start : start + BATCH]) for start in starts
        ]

    return Trial(classifier(1), normal(4), normal(1), loop=loop)


@program(fails=POLICIES)
def meta_learning():
    """Reptile: inner steps by hand on weights that are then moved a part of the way."""

    class Reptile(Own):
        def train_step(self, data):
            x, y = data
            before = [tf.identity(weight.value) for weight in self.trainable_weights]
            for _ in range(2):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
                for weight, slope in zip(
                    self.trainable_weights,
                    tape.gradient(loss, self.trainable_weights),
                    strict=True,
                ):
                    weight.assign_sub(0.1 * slope)
            pairs = list(zip(self.trainable_weights, before, strict=True))
            ways = [start - weight.value for weight, start in pairs]
            for weight, start in pairs:
                weight.assign(start)
            scale = self.optimizer.scale_loss(tf.constant(1.0))
            self.optimizer.apply([scale * way for way in ways], self.trainable_weights)
            return {"loss": loss}

    return Trial(Reptile(classifier(1)), normal(4), normal(1))
