"""Graphs, capsules, memories, alignments: networks that are more than layers."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .program import ROWS, Trial, ids, normal, program


@program()
def message_passing():
    """A graph network: gather along edges, ``tf.math.segment_sum`` into nodes."""
    edges = np.array([[0, 1, 2, 3, 0, 2], [0, 0, 1, 1, 2, 3]])  # sources, targets

    class Pass(layers.Layer):
        def __init__(self):
            super().__init__()
            self.message, self.update = layers.Dense(6, "relu"), layers.Dense(6)

        def call(self, nodes):
            x = tf.transpose(nodes, (1, 0, 2))
            sent = self.message(tf.gather(x, edges[0]))
            received = tf.math.segment_sum(sent, edges[1])
            x = self.update(tf.concat([x, received], axis=-1))
            return tf.transpose(x, (1, 0, 2))

    model = keras.Sequential([Pass(), Pass(), layers.Flatten(), layers.Dense(1)])
    return Trial(model, normal(4, 3), normal(1))


@program()
def graph_convolution():
    """An adjacency matrix as an input, made symmetric and multiplied by hand."""

    class Convolve(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(6)

        def call(self, x, adjacency):
            degree = tf.reduce_sum(adjacency, axis=-1, keepdims=True)
            return tf.nn.relu(tf.matmul(adjacency / degree, self.dense(x)))

    x, adjacency = keras.Input((4, 3)), keras.Input((4, 4))
    h = Convolve()(Convolve()(x, adjacency), adjacency)
    outputs = layers.Dense(1)(layers.GlobalAveragePooling1D()(h))
    matrix = ids(2, 4, 4, dtype="float32") + np.eye(4, dtype="float32")
    return Trial(
        keras.Model([x, adjacency], outputs), [normal(4, 3), matrix], normal(1)
    )


@program()
def graph_attention():
    """Scores of all pairs by a sum of two projections, leaky relu, masked softmax."""

    class Attend(layers.Layer):
        def __init__(self):
            super().__init__()
            self.project, self.a, self.b = (layers.Dense(n) for n in (4, 1, 1))
            self.activation, self.softmax = layers.LeakyReLU(), layers.Softmax()

        def call(self, x):
            h = self.project(x)
            scores = self.activation(self.a(h) + tf.transpose(self.b(h), (0, 2, 1)))
            return tf.matmul(self.softmax(scores, mask=tf.eye(4) < 1), h)

    model = keras.Sequential([Attend(), layers.Flatten(), layers.Dense(1)])
    return Trial(model, normal(4, 3), normal(1))


@program()
def capsules():
    """Routing by agreement: softmax of logits that are updated in a loop, squash."""

    class Capsules(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(4, 3, shape[-1], 5), name="w")

        def call(self, x):
            votes = tf.einsum("bif,ijfd->bijd", x, self.w)
            logits = tf.zeros_like(votes[..., 0])
            for _ in range(2):
                weights = tf.nn.softmax(logits, axis=-1)
                s = tf.einsum("bij,bijd->bjd", weights, votes)
                square = tf.reduce_sum(s**2, axis=-1, keepdims=True)
                v = s * tf.sqrt(square) / (1 + square)
                logits += tf.einsum("bijd,bjd->bij", votes, v)
            return v

    model = keras.Sequential([Capsules(), layers.Flatten(), layers.Dense(1)])
    return Trial(model, normal(4, 6), normal(1))


@program()
def hypernetwork():
    """A network gives the kernel that another input is multiplied by."""

    class Hyper(layers.Layer):
        def __init__(self):
            super().__init__()
            self.weights_of = layers.Dense(4 * 3)

        def call(self, x, task):
            kernel = tf.reshape(self.weights_of(task), (-1, 4, 3))
            return tf.einsum("bi,bij->bj", x, kernel)

    x, task = keras.Input((4,)), keras.Input((2,))
    model = keras.Model([x, task], layers.Dense(1)(Hyper()(x, task)))
    return Trial(model, [normal(4), normal(2)], normal(1))


@program()
def memory_network():
    """An answer from sentences: three embeddings, softmax over the memory, hops."""

    class Memory(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.c, self.b = (layers.Embedding(15, 6) for _ in range(3))
            self.softmax, self.out = layers.Softmax(), layers.Dense(15)

        def call(self, inputs):
            story, question = inputs
            keys = tf.reduce_sum(self.a(story), axis=2)
            values = tf.reduce_sum(self.c(story), axis=2)
            u = tf.reduce_sum(self.b(question), axis=1)
            for _ in range(2):
                p = self.softmax(tf.einsum("bmd,bd->bm", keys, u))
                u = u + tf.einsum("bm,bmd->bd", p, values)
            return self.out(u)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(Memory(), [ids(15, 4, 3), ids(15, 3)], ids(15), loss)


@program()
def neural_turing_machine():
    """Addressing by cosine, sharpened by a power, written to a memory in a loop."""

    class Machine(keras.Model):
        def __init__(self):
            super().__init__()
            self.controller, self.key = layers.Dense(6, "tanh"), layers.Dense(4)
            self.strength, self.out = layers.Dense(1, "softplus"), layers.Dense(1)

        def call(self, x):
            memory = tf.ones((tf.shape(x)[0], 5, 4), x.dtype) * 0.1
            memory += tf.cast(tf.eye(5, 4), x.dtype)
            read = tf.zeros_like(memory[:, 0])
            for t in range(3):
                h = self.controller(tf.concat([x[:, t], read], axis=-1))
                key = self.key(h)
                cosine = tf.einsum(
                    "bd,bmd->bm",
                    tf.nn.l2_normalize(key, -1, 1e-4),
                    tf.nn.l2_normalize(memory, -1, 1e-4),
                )
                address = tf.nn.softmax(self.strength(h) * cosine)
                read = tf.einsum("bm,bmd->bd", address, memory)
                memory += address[..., None] * tf.tanh(key)[:, None]
            return self.out(tf.concat([h, read], axis=-1))

    return Trial(Machine(), normal(3, 3), normal(1))


@program()
def pointer_network():
    """Probabilities over the inputs' places, less where they were used before."""

    class Pointer(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = layers.GRU(6, return_sequences=True)
            self.cell, self.query = layers.GRUCell(6), layers.Dense(6)

        def call(self, x):
            keys, used, outputs = self.encoder(x), 0.0, []
            state = keys[:, -1]
            for _ in range(2):
                scores = tf.einsum("btd,bd->bt", keys, self.query(state)) - 10.0 * used
                p = tf.nn.softmax(scores)
                used += p
                _, state = self.cell(tf.einsum("bt,btd->bd", p, keys), state)
                outputs.append(p)
            return tf.stack(outputs, axis=1)

    loss = "sparse_categorical_crossentropy"
    return Trial(Pointer(), normal(4, 3), np.array([[0, 1]] * ROWS), loss)


@program()
def ctc():
    """An alignment: convolutions, a softmax, and Keras's CTC loss."""
    model = keras.Sequential([layers.Conv1D(8, 3, activation="relu"), layers.Dense(5)])

    def loss(y, logits):
        lengths = ops.full((4,), 6, dtype="int32"), ops.full((4,), 2, dtype="int32")
        return ops.ctc_loss(y, logits, lengths[1], lengths[0], mask_index=0)

    return Trial(model, normal(8, 3), 1 + ids(4, 2), loss)


@program()
def crf():
    """The forward algorithm of a CRF: logsumexp along time, transitions as weights."""

    class Crf(layers.Layer):
        def build(self, shape):
            self.transitions = self.add_weight(shape=(3, 3), name="transitions")

        def call(self, potentials, tags):
            transitions = tf.convert_to_tensor(self.transitions)
            alpha = potentials[:, 0]
            for t in range(1, potentials.shape[1]):
                inner = alpha[:, :, None] + transitions[None]
                alpha = tf.reduce_logsumexp(inner, axis=1) + potentials[:, t]
            hot = tf.one_hot(tags, 3, dtype=potentials.dtype)
            score = tf.reduce_sum(potentials * hot, axis=(1, 2))
            pairs = tf.einsum("bti,ij,btj->b", hot[:, :-1], transitions, hot[:, 1:])
            self.add_loss(
                tf.reduce_mean(tf.reduce_logsumexp(alpha, -1) - score - pairs)
            )
            return potentials

    x, tags = keras.Input((5, 4)), keras.Input((5,), dtype="int32")
    model = keras.Model([x, tags], Crf()(layers.Dense(3)(x), tags))
    return Trial(model, [normal(5, 4), ids(3, 5)], loss=None)


@program()
def fourier_mixing():
    """FNet: the real part of a complex Fourier transform, by casts to and fro."""

    class Mix(layers.Layer):
        def call(self, x):
            spectrum = tf.signal.fft2d(tf.cast(x, "complex64"))
            return x + 0.1 * tf.cast(tf.math.real(spectrum), x.dtype)

    model = keras.Sequential(
        [layers.Dense(4), Mix(), layers.LayerNormalization(), layers.Dense(1)]
    )
    return Trial(model, normal(5, 3), normal(5, 1))


@program()
def collaborative_filtering():
    """Two towers, their product, biases, and the ids as columns of one matrix."""

    class Towers(keras.Model):
        def __init__(self):
            super().__init__()
            self.user, self.item = layers.Embedding(20, 5), layers.Embedding(30, 5)
            self.biases = [layers.Embedding(20, 1), layers.Embedding(30, 1)]

        def call(self, pairs):
            user, item = pairs[:, 0], pairs[:, 1]
            dot = tf.reduce_sum(self.user(user) * self.item(item), -1, keepdims=True)
            return tf.nn.sigmoid(dot + self.biases[0](user) + self.biases[1](item))

    return Trial(Towers(), ids(20, 2), ids(2, 1), loss="binary_crossentropy")


@program()
def deep_sets():
    """A sum over a set, then a network; and a softmax over its members."""

    class Sets(keras.Model):
        def __init__(self):
            super().__init__()
            self.phi, self.rho = layers.Dense(6, "relu"), layers.Dense(1)
            self.softmax = layers.Softmax(axis=1)

        def call(self, x):
            h = self.phi(x)
            return self.rho(ops.sum(h, axis=1) + ops.sum(self.softmax(h) * h, axis=1))

    return Trial(Sets(), normal(5, 3), normal(1))


@program()
def neural_tree():
    """A soft decision tree: products of sigmoids, and leaves as weights."""

    class Tree(layers.Layer):
        def __init__(self):
            super().__init__()
            self.decide = layers.Dense(3, "sigmoid")

        def build(self, shape):
            self.decide.build(shape)
            self.leaves = self.add_weight(shape=(4, 1), name="leaves")

        def call(self, x):
            p = self.decide(x)
            top = tf.stack([p[:, 0], 1 - p[:, 0]], axis=1)
            low = tf.stack([p[:, 1:], 1 - p[:, 1:]], axis=-1)
            paths = tf.reshape(top[..., None] * low, (-1, 4))
            return tf.matmul(paths, self.leaves)

    return Trial(keras.Sequential([Tree()]), normal(4), normal(1))
