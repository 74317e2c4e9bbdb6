"""Layers that mix float32 into 16 bits: Keras trains them in float32 only."""

import functools
import tempfile

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .program import POLICIES, Trial, ids, normal, program, uniform

RANDOM = "the numbers drawn depend on what was drawn before"


def around(*middle, shape=(4,)):
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Dense(4),
            *middle,
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    return Trial(model, normal(*shape), normal(1))


@program(fails=POLICIES)
def constant():
    class Scale(layers.Layer):
        def call(self, x):
            return x * tf.constant([0.5, 1.0, 1.5, 2.0])

    return around(Scale())


@program(fails=POLICIES)
def constant_in_a_model():
    """The sum is in the model's own ``call``; its layers are Keras's."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.out = layers.Dense(4), layers.Dense(1)

        def call(self, x):
            return self.out(self.dense(x) + tf.linspace(0.0, 1.0, 4))

    return Trial(Net(), normal(4), normal(1))


@program(fails=POLICIES)
def constant_in_an_inner_layer():
    """Only the innermost layer mixes; the two around it do not."""

    class Inner(layers.Layer):
        def call(self, x):
            return tf.add(x, tf.range(4.0))

    class Outer(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner, self.gate = Inner(), layers.Dense(4, "softmax")

        def call(self, x):
            return x + self.gate(x) * self.inner(x)

    return around(Outer(), Outer())


@program(fails=POLICIES)
def numpy_constant():
    """A NumPy array of float32 becomes a tensor of float32 before the product."""

    class Positions(layers.Layer):
        def __init__(self):
            super().__init__()
            self.table = tf.convert_to_tensor(np.ones((5, 4), "float32"))

        def call(self, x):
            return x + self.table[: x.shape[1]]

    return around(Positions(), shape=(5, 3))


@program(fails=POLICIES)
def lambda_with_a_weight():
    w = tf.constant([[1.0, 2.0, 3.0, 4.0]])
    return around(layers.Lambda(lambda x: x * w))


@program(fails=POLICIES)
def mask_in_float32():
    class Masked(layers.Layer):
        def call(self, x):
            mask = tf.cast(tf.reduce_sum(x, -1, keepdims=True) > 0, tf.float32)
            return x * mask

    return around(Masked(), shape=(5, 3))


@program(fails=POLICIES)
def causal_mask_in_float32():
    """Attention by hand with a mask that is made in float32."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (layers.Dense(4) for _ in range(3))

        def call(self, x):
            scores = tf.matmul(self.q(x), self.k(x), transpose_b=True)
            mask = 1.0 - tf.linalg.band_part(tf.ones((5, 5)), -1, 0)
            return tf.matmul(tf.nn.softmax(scores - 1e4 * mask), self.v(x))

    return around(Attend(), shape=(5, 3))


@program(fails=POLICIES)
def experts_in_float32():
    """A mixture of experts that casts its gate, as for a stable softmax."""

    class Experts(layers.Layer):
        def __init__(self):
            super().__init__()
            self.gate = layers.Dense(3)
            self.experts = [layers.Dense(4) for _ in range(3)]

        def call(self, x):
            gate = tf.nn.softmax(tf.cast(self.gate(x), tf.float32))
            outputs = tf.stack([expert(x) for expert in self.experts], axis=1)
            return tf.einsum("be,bed->bd", gate, outputs)

    return around(Experts())


@program(fails=POLICIES)
def rotary_in_float32():
    class Rotate(layers.Layer):
        def call(self, x):
            angles = tf.range(5.0)[:, None] * tf.constant([[1.0, 0.1]])
            a, b = tf.split(x, 2, axis=-1)
            cos, sin = tf.cos(angles), tf.sin(angles)
            return tf.concat([a * cos - b * sin, a * sin + b * cos], axis=-1)

    return around(Rotate(), shape=(5, 3))


@program(fails=POLICIES)
def resize_without_a_cast():
    """``tf.image.resize`` gives float32, which is added to 16 bits."""

    class Resize(layers.Layer):
        def call(self, x):
            small = tf.nn.avg_pool2d(x, 2, 2, "VALID")
            return x + tf.image.resize(small, (4, 4))

    model = keras.Sequential([layers.Conv2D(3, 3), Resize(), layers.Flatten()])
    model.add(layers.Dense(1))
    return Trial(model, uniform(6, 6, 1), normal(1))


@program(fails=POLICIES)
def cell_with_a_float32_state():
    """A cell whose first state is made in float32."""

    class Cell(layers.Layer):
        def __init__(self):
            super().__init__()
            self.state_size, self.dense = 4, layers.Dense(4, "tanh")

        def build(self, shape):
            self.dense.build((shape[0], shape[1]))

        def call(self, x, states):
            decay = tf.constant([0.1, 0.5, 0.7, 0.9])
            h = self.dense(x) + decay * states[0]
            return h, [h]

    return around(layers.RNN(Cell()), shape=(5, 3))


@program(fails=POLICIES)
def own_loss_of_a_constant():
    """``add_loss`` of a difference between 16 bits and a constant."""

    class Center(layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * tf.reduce_mean(tf.square(x - tf.zeros((4,)))))
            return x

    return around(Center())


@program(fails=("mixed_bfloat16",))
def linear_algebra():
    """``tf.linalg.inv`` has no kernel in bfloat16."""

    class Whiten(layers.Layer):
        def call(self, x):
            covariance = tf.matmul(x, x, transpose_a=True) + tf.eye(4, dtype=x.dtype)
            return tf.matmul(x, tf.linalg.inv(covariance))

    return around(Whiten(), shape=(5, 3))


@program(fails=POLICIES)
def cholesky_of_ops():
    class Factor(layers.Layer):
        def call(self, x):
            square = ops.matmul(ops.transpose(x, (0, 2, 1)), x)
            square = square + ops.eye(4, dtype=x.dtype)
            return ops.matmul(x, ops.cholesky(square))

    return around(Factor(), shape=(5, 3))


@program(fails=POLICIES)
def fourier_transform():
    """``tf.signal.rfft`` takes float32 or float64."""

    class Spectrum(layers.Layer):
        def call(self, x):
            return tf.abs(tf.signal.rfft(x))

    return around(Spectrum())


@program(fails=POLICIES)
def spectrogram():
    class Spectrogram(layers.Layer):
        def call(self, x):
            frames = tf.abs(tf.signal.stft(x, 8, 4))
            mel = tf.signal.linear_to_mel_weight_matrix(4, 5, 8000, 20.0, 4000.0)
            return tf.math.log(tf.matmul(frames, mel) + 1e-2)

    model = keras.Sequential(
        [keras.Input((32,)), Spectrogram(), layers.Flatten(), layers.Dense(1)]
    )
    return Trial(model, normal(32), normal(1))


@functools.cache
def _saved():
    """Return a folder with a SavedModel that multiplies by a matrix of float32."""
    folder, module = tempfile.TemporaryDirectory(), tf.Module()
    w = np.linspace(0, 0.5, 16, dtype="float32").reshape(4, 4)
    signature = [tf.TensorSpec((None, 4), tf.float32)]
    serve = tf.function(lambda x: {"y": tf.matmul(x, w)}, signature)
    tf.saved_model.save(module, folder.name, signatures=serve)
    return folder


@program(fails=POLICIES)
def saved_model():
    """A SavedModel in float32 between two layers (``TFSMLayer``)."""
    saved = layers.TFSMLayer(_saved().name, call_endpoint="serving_default")
    return around(saved, layers.Lambda(lambda outputs: outputs["y"]))


@program(fails=POLICIES)
def function_of_float32():
    """A ``tf.function`` with a signature, and a ``py_function`` that gives float32."""

    class Call(layers.Layer):
        def call(self, x):
            y = tf.numpy_function(np.sign, [tf.stop_gradient(x)], tf.float32)
            return x * tf.ensure_shape(y, x.shape)

    return around(Call())


@program(fails=POLICIES)
def embedding_by_hand():
    """A product with a table that is a plain ``tf.Variable``."""

    class Bag(layers.Layer):
        def __init__(self):
            super().__init__()
            self.table = tf.Variable(tf.ones((10, 4)))
            self.dense = layers.Dense(4)

        def call(self, tokens):
            return self.dense(tf.gather(self.table, tokens)) * tf.gather(
                self.table, tokens
            )

    tokens = keras.Input((5,), dtype="int32")
    x = layers.Flatten()(Bag()(tokens))
    return Trial(keras.Model(tokens, layers.Dense(1)(x)), ids(10, 5), normal(1))


@program(fails=POLICIES, noise=RANDOM)
def tf_random_normal():
    """Noise by ``tf.random.normal`` without a dtype."""

    class Noise(layers.Layer):
        def call(self, x, training=False):
            return x + 0.1 * tf.random.normal(tf.shape(x)) if training else x

    return around(Noise())
