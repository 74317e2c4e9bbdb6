"""Attention by hand, positions, and other things that transformers are made of."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .program import Trial, ids, normal, program


def pooled(*middle):
    """Return a classifier of sequences with the given layers in the middle."""
    return keras.Sequential([*middle, layers.GlobalAveragePooling1D(), layers.Dense(1)])


def trial(*middle):
    return Trial(pooled(layers.Dense(8), *middle), normal(5, 3), normal(1))


@program()
def attention_by_softmax_layer():
    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.softmax = layers.Softmax()

        def call(self, x):
            weights = self.softmax(tf.matmul(x, x, transpose_b=True))
            return tf.matmul(weights, x)

    return trial(Attend())


@program()
def multi_head_attention_by_hand():
    """Heads by reshape and transpose, a causal mask of -1e9, a softmax of ops."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = layers.Dense(24, use_bias=False), layers.Dense(8)

        def call(self, x):
            length = ops.shape(x)[1]
            qkv = ops.reshape(self.qkv(x), (-1, length, 3, 2, 4))
            q, k, v = (ops.moveaxis(qkv[:, :, i], 1, 2) for i in range(3))
            scores = ops.einsum("bhqd,bhkd->bhqk", q, k) / 4**0.5
            mask = ops.tril(ops.ones((length, length), dtype="bool"))
            scores = ops.where(mask, scores, -1e9)
            x = ops.matmul(ops.softmax(scores), v)
            return self.out(ops.reshape(ops.moveaxis(x, 1, 2), (-1, length, 8)))

    return trial(Attend())


@program()
def additive_mask():
    """A mask in the compute dtype, times -10000, added to the scores, as in BERT."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (layers.Dense(8) for _ in range(3))

        def call(self, x, mask):
            scores = tf.matmul(self.q(x), self.k(x), transpose_b=True)
            scores += (1.0 - tf.cast(mask, x.dtype))[:, None, :] * -1e4
            return tf.matmul(tf.nn.softmax(scores), self.v(x))

    x, mask = keras.Input((5, 3)), keras.Input((5,))
    model = keras.Model([x, mask], pooled()(Attend()(layers.Dense(8)(x), mask)))
    mask = (np.arange(5) < 1 + ids(5, 1)).astype("float32")
    return Trial(model, [normal(5, 3), mask], normal(1))


@program()
def attention_pooling():
    """A softmax over time, by an activation argument, times the values."""

    class Pool(layers.Layer):
        def __init__(self):
            super().__init__()
            self.score = layers.Dense(1)
            self.softmax = layers.Activation(lambda x: keras.activations.softmax(x, 1))

        def call(self, x):
            return tf.reduce_sum(self.softmax(self.score(x)) * x, axis=1)

    model = keras.Sequential([layers.Dense(8), Pool(), layers.Dense(1)])
    return Trial(model, normal(5, 3), normal(1))


@program()
def bahdanau_attention():
    """A query repeated and added to the keys, tanh, a score, a weighted sum."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.w1, self.w2, self.v = layers.Dense(8), layers.Dense(8), layers.Dense(1)

        def call(self, query, values):
            score = self.v(tf.nn.tanh(self.w1(query)[:, None] + self.w2(values)))
            weights = tf.nn.softmax(score, axis=1)
            return tf.reduce_sum(weights * values, axis=1), weights

    query, values = keras.Input((4,)), keras.Input((5, 3))
    context, _ = Attend()(query, values)
    model = keras.Model([query, values], layers.Dense(1)(context))
    return Trial(model, [normal(4), normal(5, 3)], normal(1))


@program()
def luong_attention_softmax_dense():
    """A ``Dense`` with softmax as its activation weighs rows that it did not see."""

    class Weigh(layers.Layer):
        def __init__(self):
            super().__init__()
            self.weigh = layers.Dense(5, activation="softmax")

        def call(self, x):
            return tf.einsum("bt,btd->bd", self.weigh(x[:, -1]), x)

    model = keras.Sequential([layers.Dense(8), Weigh(), layers.Dense(1)])
    return Trial(model, normal(5, 3), normal(1))


@program()
def sinusoidal_positions():
    """Positions computed in NumPy, cast where they are added."""

    class Positions(layers.Layer):
        def __init__(self):
            super().__init__()
            angles = np.arange(5)[:, None] / 100 ** (np.arange(8)[None] / 8)
            self.table = np.sin(angles).astype("float32")

        def call(self, x):
            return x * self.compute_dtype_scale() + tf.cast(self.table, x.dtype)

        def compute_dtype_scale(self):
            return tf.math.sqrt(tf.cast(8, self.compute_dtype))

    return trial(Positions())


@program()
def learned_positions():
    """Two embeddings added, as in keras.io's text classification."""

    class TokensAndPositions(layers.Layer):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = (
                layers.Embedding(20, 8),
                layers.Embedding(5, 8),
            )

        def call(self, tokens):
            positions = ops.arange(0, ops.shape(tokens)[-1])
            return self.tokens(tokens) + self.positions(positions)

    return Trial(pooled(TokensAndPositions()), ids(20, 5), normal(1))


@program()
def rotary_embedding():
    class Rotate(layers.Layer):
        def call(self, x):
            steps = ops.cast(ops.arange(5), x.dtype)[:, None]
            angles = steps * ops.cast(0.5 ** np.arange(4), x.dtype)
            a, b = ops.split(x, 2, axis=-1)
            cos, sin = ops.cos(angles), ops.sin(angles)
            return ops.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    return trial(Rotate())


@program()
def transformer_block():
    """keras.io's block: attention, dropout, residuals and layer normalization."""

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention = layers.MultiHeadAttention(2, 4)
            self.ffn = keras.Sequential([layers.Dense(16, "gelu"), layers.Dense(8)])
            self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
            self.dropout = layers.Dropout(0.0)

        def call(self, x, training=False):
            attended = self.dropout(self.attention(x, x), training=training)
            x = self.norms[0](x + attended)
            return self.norms[1](x + self.ffn(x))

    return trial(Block(), Block())


@program()
def multi_head_attention_scores():
    """The scores of ``MultiHeadAttention``, used by the layer around it."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention = layers.MultiHeadAttention(1, 4)

        def call(self, x):
            y, scores = self.attention(x, x, return_attention_scores=True)
            return y + tf.matmul(scores[:, 0], x)

    return trial(Attend())


@program()
def multi_head_attention_subclass():
    """A cache that adds nothing: a subclass that only passes its arguments on."""

    class Cached(layers.MultiHeadAttention):
        def call(self, query, value, key=None, **kwargs):
            return super().call(query, value, key, **kwargs) * 1.0 + query

    class Around(layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention = Cached(2, 4)

        def call(self, x):
            return x + self.attention(x, x)

    return trial(Around())


@program()
def linear_attention():
    """Kernel attention: ``elu(x) + 1`` as features, two products, a quotient."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (layers.Dense(8) for _ in range(3))

        def call(self, x):
            q, k = tf.nn.elu(self.q(x)) + 1, tf.nn.elu(self.k(x)) + 1
            kv = tf.einsum("btd,btv->bdv", k, self.v(x))
            norm = tf.einsum("btd,bd->bt", q, tf.reduce_sum(k, axis=1))
            return tf.einsum("btd,bdv->btv", q, kv) / norm[..., None]

    return trial(Attend())


@program()
def perceiver():
    """Learned queries, tiled over the batch, read the inputs by cross attention."""

    class Read(layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention = layers.MultiHeadAttention(2, 4)

        def build(self, shape):
            self.queries = self.add_weight(shape=(1, 3, shape[-1]), name="queries")

        def call(self, x):
            queries = tf.tile(self.queries, (tf.shape(x)[0], 1, 1))
            return queries + self.attention(queries, x)

    return trial(Read())


@program()
def class_token():
    """A vision transformer's class token, broadcast and put before the patches."""

    class Token(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
            self.position = self.add_weight(shape=(1, 6, shape[-1]), name="position")

        def call(self, x):
            token = tf.broadcast_to(self.token, (tf.shape(x)[0], 1, x.shape[-1]))
            return tf.concat([token, x], axis=1) + self.position

    return trial(Token(), layers.LayerNormalization())
