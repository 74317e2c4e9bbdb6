"""Several inputs, masks and raw data that operations of one's own put together."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .program import ROWS, Trial, ids, normal, program, uniform


@program()
def embedding_and_numbers():
    """``tf.concat`` of an embedding of ids and of numbers, from a dict."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.out = layers.Embedding(50, 8), layers.Dense(1)

        def call(self, inputs):
            parts = [self.table(inputs["shop"]), inputs["numbers"]]
            return self.out(tf.concat(parts, axis=-1))

    return Trial(Net(), {"shop": ids(50), "numbers": normal(4)}, normal(1))


@program()
def float_ids_and_numbers():
    """Ids that are floats, beside numbers, from a list."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.out = layers.Embedding(50, 8), layers.Dense(1)

        def call(self, inputs):
            shop, numbers = inputs
            return self.out(self.table(shop) * tf.reduce_mean(numbers, -1, True))

    return Trial(Net(), [ids(50, dtype="float32"), normal(4)], normal(1))


@program()
def one_matrix_of_ids_and_numbers():
    """One matrix whose first column is an id, in a layer within a Sequential."""

    class Split(layers.Layer):
        def __init__(self):
            super().__init__()
            self.table = layers.Embedding(50, 4)

        def call(self, x):
            return tf.concat([self.table(x[:, 0]), x[:, 1:]], axis=-1)

    x = np.concatenate([ids(50, 1, dtype="float32"), normal(3)], axis=1)
    model = keras.Sequential([keras.Input((4,)), Split(), layers.Dense(1)])
    return Trial(model, x, normal(1))


@program()
def normalized_and_raw():
    """``Normalization`` within a model, beside the raw numbers themselves."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalize = layers.Normalization()
            self.normalize.adapt(uniform(4))
            self.out = layers.Dense(1)

        def call(self, x):
            return self.out(self.normalize(x) + 0.1 * x)

    return Trial(Net(), uniform(4), normal(1))


@program()
def tuple_of_inputs():
    """A layer that takes two tensors and multiplies them."""

    class Bilinear(layers.Layer):
        def build(self, shapes):
            shape = (shapes[0][-1], 3, shapes[1][-1])
            self.kernel = self.add_weight(shape=shape, name="kernel")

        def call(self, inputs):
            left, right = inputs
            return tf.einsum("bi,ikj,bj->bk", left, self.kernel, right)

    a, b = keras.Input((4,)), keras.Input((5,))
    outputs = layers.Dense(1)(Bilinear()((layers.Dense(4)(a), b)))
    return Trial(keras.Model((a, b), outputs), (normal(4), normal(5)), normal(1))


@program()
def keyword_input():
    """A layer that takes a second tensor by name."""

    class Film(layers.Layer):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = layers.Dense(4), layers.Dense(4)

        def call(self, x, condition=None):
            return x * (1 + self.scale(condition)) + self.shift(condition)

    a, b = keras.Input((4,)), keras.Input((5,))
    outputs = layers.Dense(1)(Film()(layers.Dense(4)(a), condition=b))
    return Trial(keras.Model([a, b], outputs), [normal(4), normal(5)], normal(1))


@program()
def mask_of_lengths():
    """``tf.sequence_mask`` in the dtype of what it masks; lengths are an input."""

    class Mean(keras.Model):
        def __init__(self):
            super().__init__()
            self.project, self.out = layers.Dense(6, "relu"), layers.Dense(1)

        def call(self, inputs):
            x = self.project(inputs["x"])
            mask = tf.sequence_mask(inputs["length"], 5, dtype=x.dtype)[..., None]
            total = tf.reduce_sum(x * mask, axis=1)
            return self.out(total / tf.reduce_sum(mask, axis=1))

    return Trial(Mean(), {"x": normal(5, 3), "length": 1 + ids(5)}, normal(1))


@program()
def float_mask_as_input():
    """A mask of zeros and ones in float32, from the data, times embeddings."""

    class Bag(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.out = layers.Embedding(20, 6), layers.Dense(1)

        def call(self, inputs):
            tokens, mask = inputs
            x = self.table(tokens) * mask[..., None]
            return self.out(ops.sum(x, axis=1) / ops.sum(mask, axis=1, keepdims=True))

    mask = (np.arange(5) < 1 + ids(5, 1)).astype("float32")
    return Trial(Bag(), (ids(20, 5), mask), normal(1))


@program()
def where_with_constants():
    """``tf.where`` between what a layer gave and Python's numbers."""

    class Clean(layers.Layer):
        def call(self, x):
            x = tf.where(tf.math.is_finite(x), x, tf.zeros_like(x))
            return tf.where(x > 1.0, x * 0.5, x)

    model = keras.Sequential([layers.Dense(4), Clean(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program()
def boolean_mask_of_rows():
    """Rows that are padding leave the sum by ``tf.boolean_mask``."""

    class Masked(keras.Model):
        def __init__(self):
            super().__init__()
            self.project, self.out = layers.Dense(4), layers.Dense(1)

        def call(self, x):
            x = self.project(x)
            kept = tf.boolean_mask(x, tf.reduce_sum(x, -1) > 0)
            return self.out(x + tf.reduce_sum(kept, axis=0, keepdims=True))

    return Trial(Masked(), normal(4), normal(1))


@program()
def keras_mask_used_by_hand():
    """A layer that reads the mask of an ``Embedding`` and multiplies by it."""

    class Average(layers.Layer):
        supports_masking = True

        def call(self, x, mask=None):
            mask = ops.cast(mask, x.dtype)[..., None]
            return ops.sum(x * mask, axis=1) / (ops.sum(mask, axis=1) + 1e-3)

        def compute_mask(self, inputs, mask=None):
            return None

    tokens = keras.Input((5,), dtype="int32")
    x = Average()(layers.Embedding(20, 6, mask_zero=True)(tokens))
    return Trial(keras.Model(tokens, layers.Dense(1)(x)), ids(20, 5), normal(1))


@program()
def deep_and_wide():
    """One-hot features for a linear part, embeddings and numbers for a deep one."""

    class WideAndDeep(keras.Model):
        def __init__(self):
            super().__init__()
            self.wide = layers.Dense(1)
            self.table = layers.Embedding(10, 4)
            self.deep = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(1)])

        def call(self, inputs):
            wide = self.wide(tf.one_hot(inputs["shop"], 10, dtype=self.compute_dtype))
            x = tf.concat([self.table(inputs["shop"]), inputs["numbers"]], axis=-1)
            return tf.nn.sigmoid(wide + self.deep(x))

    x = {"shop": ids(10), "numbers": normal(3)}
    return Trial(WideAndDeep(), x, ids(2, 1), loss="binary_crossentropy")


@program()
def factorization_machine():
    """Pairs of features by the square of a sum less the sum of squares."""

    class Machine(keras.Model):
        def __init__(self):
            super().__init__()
            self.linear, self.table = layers.Embedding(30, 1), layers.Embedding(30, 4)

        def call(self, features):
            v = self.table(features)
            pairs = tf.square(tf.reduce_sum(v, 1)) - tf.reduce_sum(tf.square(v), 1)
            linear = tf.reduce_sum(self.linear(features), axis=1)
            return linear + 0.5 * tf.reduce_sum(pairs, axis=-1, keepdims=True)

    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Trial(Machine(), ids(30, 4), ids(2, 1), loss=loss)


@program()
def dlrm():
    """Products of all pairs of embeddings and of a bottom network, as in DLRM."""

    class Dlrm(keras.Model):
        def __init__(self):
            super().__init__()
            self.tables = [layers.Embedding(20, 4) for _ in range(3)]
            self.bottom, self.top = layers.Dense(4, "relu"), layers.Dense(1)

        def call(self, inputs):
            dense = self.bottom(inputs["dense"])
            features = inputs["sparse"]
            rows = [table(features[:, i]) for i, table in enumerate(self.tables)]
            stacked = tf.stack([dense, *rows], axis=1)
            products = tf.matmul(stacked, stacked, transpose_b=True)
            above = [4 * i + j for i in range(4) for j in range(i)]
            pairs = tf.gather(tf.reshape(products, (-1, 16)), above, axis=1)
            return self.top(tf.concat([dense, pairs], axis=-1))

    x = {"dense": normal(5), "sparse": ids(20, 3)}
    return Trial(Dlrm(), x, normal(1))


@program()
def rescaled_and_augmented():
    """``Rescaling`` and a flip within a layer of one's own, on pixels."""

    class Prepare(layers.Layer):
        def __init__(self):
            super().__init__()
            self.rescale = layers.Rescaling(1 / 255)
            self.flip = layers.RandomFlip("horizontal", seed=1)

        def call(self, x, training=False):
            return self.flip(self.rescale(x), training=training) - 0.5

    model = keras.Sequential(
        [Prepare(), layers.Conv2D(3, 3), layers.GlobalAveragePooling2D()]
    )
    return Trial(model, 255 * uniform(6, 6, 3), normal(3))


@program()
def dataset_with_weights():
    """Batches of dicts with sample weights, from a ``tf.data.Dataset``."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = layers.Dense(4), layers.Dense(1)

        def call(self, inputs):
            return self.out(self.hidden(inputs["a"]) * inputs["b"])

    rows = ({"a": normal(3), "b": normal(4)}, normal(1), np.linspace(0, 1, ROWS))
    return Trial(Net(), tf.data.Dataset.from_tensor_slices(rows).batch(4))
