"""Layers of one's own on images and other grids."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import Trial, ids, normal, program, uniform


def images(*middle, filters=4):
    """Return a trial on images, with the given layers after a first convolution."""
    model = keras.Sequential(
        [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            *middle,
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, "softmax"),
        ]
    )
    return Trial(model, uniform(8, 8, 3), ids(3), "sparse_categorical_crossentropy")


@program()
def squeeze_and_excite():
    class Excite(layers.Layer):
        def __init__(self):
            super().__init__()
            self.pool = layers.GlobalAveragePooling2D()
            self.down, self.up = layers.Dense(2, "relu"), layers.Dense(4, "sigmoid")

        def call(self, x):
            return x * self.up(self.down(self.pool(x)))[:, None, None, :]

    return images(Excite())


@program()
def residual_block():
    class Residual(layers.Layer):
        def __init__(self):
            super().__init__()
            self.convolutions = [layers.Conv2D(4, 3, padding="same") for _ in range(2)]
            self.norms = [layers.BatchNormalization() for _ in range(2)]

        def call(self, x, training=False):
            y = x
            for convolve, norm in zip(self.convolutions, self.norms, strict=True):
                y = tf.nn.relu(norm(convolve(y), training=training))
            return x + y

    return images(Residual())


@program()
def convolution_of_weights():
    """``tf.nn.conv2d`` with a kernel of the layer's own, standardized."""

    class Standardized(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(3, 3, shape[-1], 4), name="kernel")

        def call(self, x):
            kernel = tf.convert_to_tensor(self.kernel)
            kernel -= tf.reduce_mean(kernel, axis=(0, 1, 2), keepdims=True)
            return tf.nn.conv2d(x, kernel, strides=1, padding="SAME") + x

    return images(Standardized())


@program()
def u_net():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            options = {"padding": "same", "activation": "relu"}
            self.down = [layers.Conv2D(n, 3, **options) for n in (4, 6)]
            self.pool, self.up = layers.MaxPooling2D(), layers.UpSampling2D()
            self.middle = layers.Conv2D(8, 3, **options)
            self.ups = [layers.Conv2DTranspose(n, 3, **options) for n in (6, 4)]
            self.out = layers.Conv2D(1, 1)

        def call(self, x):
            kept = []
            for convolve in self.down:
                kept.append(convolve(x))
                x = self.pool(kept[-1])
            x = self.middle(x)
            for convolve in self.ups:
                x = convolve(tf.concat([self.up(x), kept.pop()], axis=-1))
            return self.out(x)

    return Trial(Net(), uniform(8, 8, 1), uniform(8, 8, 1, seed=1))


@program()
def coordinates():
    """CoordConv: constant coordinates, cast, beside the channels."""

    class Coordinates(layers.Layer):
        def call(self, x):
            axis = tf.cast(tf.linspace(-1.0, 1.0, 8), x.dtype)
            grid = tf.stack(tf.meshgrid(axis, axis), axis=-1)
            grid = tf.tile(grid[None], (tf.shape(x)[0], 1, 1, 1))
            return tf.concat([x, grid], axis=-1)

    return images(Coordinates(), layers.Conv2D(4, 3))


@program()
def spatial_attention():
    """CBAM: mean and maximum over the channels, a convolution, a sigmoid."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.convolve = layers.Conv2D(1, 3, padding="same", activation="sigmoid")

        def call(self, x):
            mean = ops.mean(x, axis=-1, keepdims=True)
            largest = ops.max(x, axis=-1, keepdims=True)
            return x * self.convolve(ops.concatenate([mean, largest], axis=-1))

    return images(Attend())


@program()
def spatial_transformer():
    """Pixels gathered where a network says, weighted by their distance."""

    class Transform(layers.Layer):
        def __init__(self):
            super().__init__()
            self.flatten, self.theta = layers.Flatten(), layers.Dense(2, "sigmoid")

        def call(self, x):
            at = 6.0 * self.theta(self.flatten(x))
            low = tf.floor(at)
            weight = (at - low)[:, :1, None, None]
            rows = tf.cast(low[:, 0], "int32")
            first = tf.gather(x, rows, axis=1, batch_dims=1)[:, None]
            second = tf.gather(x, rows + 1, axis=1, batch_dims=1)[:, None]
            return x + (1 - weight) * first + weight * second

    return images(Transform())


@program()
def patches():
    """Patches cut by reshape, projected, with a position's embedding added."""

    class Patches(layers.Layer):
        def __init__(self):
            super().__init__()
            self.project, self.positions = layers.Dense(4), layers.Embedding(4, 4)

        def call(self, x):
            x = tf.reshape(x, (-1, 2, 4, 2, 4, 4))
            x = tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 4, 64))
            x = self.project(x) + self.positions(tf.range(4))
            return tf.reshape(x, (-1, 2, 2, 4))

    return images(Patches())


@program()
def resized_by_tf():
    """``tf.image.resize`` gives float32, whatever it takes; cast back by hand."""

    class Resize(layers.Layer):
        def call(self, x):
            small = tf.cast(tf.image.resize(x, (4, 4)), x.dtype)
            return tf.nn.avg_pool2d(x, 2, 2, "VALID") + small

    return images(Resize())


@program()
def pyramid_pooling():
    """Pools of several sizes, enlarged again and put side by side."""

    class Pyramid(layers.Layer):
        def __init__(self):
            super().__init__()
            self.pools = [layers.AveragePooling2D(n) for n in (2, 4)]
            self.enlarge = [
                layers.UpSampling2D(n, interpolation="bilinear") for n in (2, 4)
            ]

        def call(self, x):
            parts = [x]
            for pool, enlarge in zip(self.pools, self.enlarge, strict=True):
                parts.append(enlarge(pool(x)))
            return tf.concat(parts, axis=-1)

    return images(Pyramid())


@program()
def window_attention():
    """Swin: a bias looked up by relative position is added to the scores."""

    class Window(layers.Layer):
        def __init__(self):
            super().__init__()
            self.qkv = layers.Dense(12)

        def build(self, shape):
            self.bias = self.add_weight(shape=(31,), name="bias")

        def call(self, x):
            x = tf.reshape(x, (-1, 16, 4))
            q, k, v = tf.split(self.qkv(x), 3, axis=-1)
            index = tf.range(16)[:, None] - tf.range(16)[None] + 15
            bias = tf.gather(tf.convert_to_tensor(self.bias), index)
            weights = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) + bias)
            return tf.reshape(tf.matmul(weights, v), (-1, 8, 8, 4))

    return images(Window())


@program()
def non_local_block():
    class NonLocal(layers.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (layers.Conv2D(4, 1) for _ in range(3))
            self.softmax = layers.Softmax()

        def build(self, shape):
            for layer in (self.q, self.k, self.v):
                layer.build(shape)
            self.gamma = self.add_weight(shape=(), initializer="ones", name="gamma")

        def call(self, x):
            q, k, v = (
                tf.reshape(each(x), (-1, 64, 4)) for each in (self.q, self.k, self.v)
            )
            weights = self.softmax(tf.matmul(q, k, transpose_b=True))
            return x + self.gamma * tf.reshape(tf.matmul(weights, v), tf.shape(x))

    return images(NonLocal())


@program()
def heads_of_a_detector():
    """Two heads, each with its loss, from a trunk with a path downward."""

    class Detector(keras.Model):
        def __init__(self):
            super().__init__()
            self.trunk = [layers.Conv2D(4, 3, 2, "same") for _ in range(2)]
            self.lateral, self.up = layers.Conv2D(4, 1), layers.UpSampling2D()
            self.boxes, self.classes = layers.Conv2D(4, 1), layers.Conv2D(3, 1)

        def call(self, x):
            first = tf.nn.relu(self.trunk[0](x))
            second = tf.nn.relu(self.trunk[1](first))
            x = self.lateral(first) + self.up(second)
            return {"box": tf.exp(0.1 * self.boxes(x)), "class": self.classes(x)}

    y = {"box": normal(4, 4, 4), "class": ids(3, 4, 4)}
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(Detector(), uniform(8, 8, 3), y, {"box": "huber", "class": logits})
