"""Cells of one's own, and loops inside ``call``."""

import keras
import tensorflow as tf
from keras import layers, ops

from .program import Trial, ids, normal, program


def sequential(*middle):
    model = keras.Sequential([keras.Input((5, 3)), *middle, layers.Dense(1)])
    return Trial(model, normal(5, 3), normal(1))


@keras.saving.register_keras_serializable("programs")
class MinimalCell(layers.Layer):
    """A gated cell with one gate, made of layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.gate = layers.Dense(units, "sigmoid")
        self.candidate = layers.Dense(units, "tanh")

    def build(self, shape):
        joined = (shape[0], shape[1] + self.units)
        self.gate.build(joined)
        self.candidate.build(joined)

    def get_config(self):
        return super().get_config() | {"units": self.units}

    def call(self, x, states):
        (h,) = states
        gate = self.gate(ops.concatenate([x, h], axis=-1))
        new = self.candidate(ops.concatenate([x, gate * h], axis=-1))
        h = (1 - gate) * h + gate * new
        return h, [h]


class WeightCell(layers.Layer):
    """Keras's example of a cell, made of weights."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, self.units), name="u")

    def call(self, x, states):
        h = ops.tanh(ops.matmul(x, self.kernel) + ops.matmul(states[0], self.recurrent))
        return h, [h]


@program()
def cell_of_layers():
    return sequential(layers.RNN(MinimalCell(6)))


@program()
def cell_of_weights():
    return sequential(layers.RNN(WeightCell(6), unroll=True))


@program()
def stacked_cells():
    return sequential(layers.RNN([WeightCell(6), layers.GRUCell(4), MinimalCell(3)]))


@program()
def bidirectional_over_own_cell():
    return sequential(layers.Bidirectional(layers.RNN(MinimalCell(4))))


@program()
def time_distributed_own_layer():
    class Gate(layers.Layer):
        def __init__(self):
            super().__init__()
            self.gate = layers.Dense(3, "sigmoid")

        def call(self, x):
            return x * self.gate(x)

    return sequential(layers.TimeDistributed(Gate()), layers.Flatten())


@program()
def loop_in_python():
    """A cell called step by step from a model's ``call``, as in decoders."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.cell, self.out = layers.LSTMCell(6), layers.Dense(1)

        def call(self, x):
            states = self.cell.get_initial_state(batch_size=tf.shape(x)[0])
            for t in range(x.shape[1]):
                output, states = self.cell(x[:, t], states)
            return self.out(output)

    return Trial(Net(), normal(5, 3), normal(1))


@program()
def scan():
    """A linear recurrence by ``tf.scan``."""

    class Decay(layers.Layer):
        def build(self, shape):
            self.decay = self.add_weight(shape=(shape[-1],), name="decay")

        def call(self, x):
            steps = tf.transpose(x, (1, 0, 2))
            decay = tf.sigmoid(tf.convert_to_tensor(self.decay))
            states = tf.scan(lambda h, x: decay * h + x, steps, tf.zeros_like(steps[0]))
            return states[-1]

    return sequential(layers.Dense(4), Decay())


@program()
def ops_scan():
    """A state space of diagonal form by ``keras.ops.scan``."""

    class Space(layers.Layer):
        def build(self, shape):
            self.a = self.add_weight(shape=(shape[-1],), name="a")

        def call(self, x):
            a = ops.sigmoid(ops.convert_to_tensor(self.a))

            def step(h, x):
                h = a * h + (1 - a) * x
                return h, h

            steps = ops.transpose(x, (1, 0, 2))
            return ops.scan(step, ops.zeros_like(steps[0]), steps)[0]

    return sequential(layers.Dense(4), Space())


@program()
def while_loop():
    """Fixed-point iteration by ``tf.while_loop``."""

    class Equilibrium(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, "tanh")

        def build(self, shape):
            self.dense.build((shape[0], 4))

        def call(self, x):
            def body(i, z):
                return i + 1, 0.5 * self.dense(z) + x

            return tf.while_loop(
                lambda i, z: i < 3, body, (0, tf.zeros_like(x)), maximum_iterations=3
            )[1]

    return sequential(layers.Flatten(), layers.Dense(4), Equilibrium())


@program()
def map_fn():
    class PerRow(layers.Layer):
        def call(self, x):
            return tf.map_fn(lambda row: tf.matmul(row, row, transpose_a=True) / 5, x)

    return sequential(layers.Dense(4), PerRow(), layers.Flatten())


@program()
def cond():
    """Either branch of ``tf.cond`` hands on the dtype of ``x``."""

    class Either(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, "softmax")

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            big = tf.reduce_mean(tf.abs(x)) > 1e6
            return tf.cond(big, lambda: x * 2.0, lambda: x + self.dense(x))

    return sequential(layers.Flatten(), layers.Dense(4), Either())


@program()
def ode_step():
    """Two steps of Runge-Kutta over a network."""

    class Ode(layers.Layer):
        def __init__(self):
            super().__init__()
            self.f = keras.Sequential([layers.Dense(8, "tanh"), layers.Dense(4)])

        def call(self, x):
            for _ in range(2):
                k1 = self.f(x)
                k2 = self.f(x + 0.25 * k1)
                x = x + 0.5 * k2
            return x

    return sequential(layers.Flatten(), layers.Dense(4), Ode())


@program()
def seq2seq():
    """Encoder and decoder that share a state, with an attention in between."""

    class Translate(keras.Model):
        def __init__(self):
            super().__init__()
            self.source, self.target = layers.Embedding(20, 6), layers.Embedding(15, 6)
            self.encoder = layers.GRU(8, return_sequences=True, return_state=True)
            self.decoder = layers.GRU(8, return_sequences=True)
            self.attention, self.out = layers.Attention(), layers.Dense(15)

        def call(self, inputs):
            encoded, state = self.encoder(self.source(inputs["source"]))
            decoded = self.decoder(self.target(inputs["target"]), initial_state=state)
            context = self.attention([decoded, encoded])
            return self.out(tf.concat([decoded, context], axis=-1))

    x = {"source": ids(20, 5), "target": ids(15, 4)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(Translate(), x, ids(15, 4), loss=loss)


@program()
def temporal_convolutions():
    """Dilated causal convolutions with gates and residuals (TCN, WaveNet)."""

    class Block(layers.Layer):
        def __init__(self, dilation):
            super().__init__()
            options = {"padding": "causal", "dilation_rate": dilation}
            self.filter = layers.Conv1D(4, 2, activation="tanh", **options)
            self.gate = layers.Conv1D(4, 2, activation="sigmoid", **options)

        def call(self, x):
            return x + self.filter(x) * self.gate(x)

    return sequential(layers.Dense(4), Block(1), Block(2), layers.Flatten())
