"""Models within models, shared layers, and parts that were compiled before."""

import keras
import tensorflow as tf
from keras import layers

from .program import Trial, ids, normal, program, uniform


def network(*units):
    return keras.Sequential([layers.Dense(n, "relu") for n in units])


class Residual(keras.Model):
    """A subclassed model as a part of others."""

    def __init__(self, units):
        super().__init__()
        self.dense, self.project = layers.Dense(units, "tanh"), layers.Dense(units)

    def call(self, x):
        return self.project(x) + self.dense(x)


@program()
def subclassed_within_subclassed():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [Residual(6), Residual(4)]
            self.out = layers.Dense(1)

        def call(self, x):
            for part in self.parts:
                x = part(x) * 0.5
            return self.out(x)

    return Trial(Net(), normal(4), normal(1))


@program()
def functional_within_subclassed():
    inputs = keras.Input((4,))
    x = layers.Dense(4, "softmax")(inputs)
    body = keras.Model(inputs, [layers.Add()([x, inputs]), x])

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.out = body, layers.Dense(1)

        def call(self, x):
            added, weights = self.body(x)
            return self.out(tf.concat([added, weights * x], axis=-1))

    return Trial(Net(), normal(4), normal(1))


@program()
def subclassed_within_functional():
    inputs = keras.Input((4,))
    x = Residual(4)(inputs)
    outputs = layers.Dense(1)(layers.Multiply()([x, inputs]))
    return Trial(keras.Model(inputs, outputs), normal(4), normal(1))


@program()
def sequential_ends_with_softmax():
    """A Sequential whose last layer is a softmax, times the model's input."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.gate = keras.Sequential([layers.Dense(8), layers.Dense(4, "softmax")])
            self.out = layers.Dense(1)

        def call(self, x):
            return self.out(self.gate(x) * x)

    return Trial(Net(), normal(4), normal(1))


@program()
def shared_layer():
    """One layer on two inputs, and their difference (a siamese network)."""
    shared = keras.Sequential([layers.Dense(6, "relu"), layers.UnitNormalization()])

    class Distance(layers.Layer):
        def call(self, a, b):
            return tf.reduce_sum(tf.abs(a - b), axis=-1, keepdims=True)

    a, b = keras.Input((4,)), keras.Input((4,))
    outputs = layers.Dense(1, "sigmoid")(Distance()(shared(a), shared(b)))
    x = [normal(4), normal(4, seed=1)]
    return Trial(keras.Model([a, b], outputs), x, ids(2, 1), "binary_crossentropy")


@program()
def tied_weights():
    """A language model whose output is a product with its own embedding."""

    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.body = layers.Embedding(20, 6), layers.GRU(6)

        def call(self, tokens):
            x = self.body(self.table(tokens))
            return tf.matmul(x, self.table.embeddings, transpose_b=True)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(Tied(), ids(20, 5), ids(20), loss)


@program()
def compiled_part(compiled):
    """A model that was compiled is a part, and is added to a layer's output."""
    base = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    compiled(base, "sgd", "mse")

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.base, self.dense, self.out = base, layers.Dense(4), layers.Dense(1)

        def call(self, x):
            return self.out(self.base(x) + self.dense(x))

    return Trial(Net(), normal(4), normal(1))


@program()
def trained_part(compiled):
    """An autoencoder is trained; its encoder goes on, frozen, into a classifier."""
    encoder = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    whole = keras.Sequential([encoder, layers.Dense(4)])
    compiled(whole, "sgd", "mse")
    whole.fit(normal(4), normal(4), verbose=0)
    encoder.trainable = False

    class Classify(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.out = encoder, layers.Dense(1)

        def call(self, x):
            return self.out(tf.concat([self.encoder(x), x * 0.5], axis=-1)[:, :5])

    return Trial(Classify(), normal(4), normal(1))


@program()
def compiled_part_in_a_graph(compiled):
    """What a compiled model gives, within a Functional graph of another."""
    inputs = keras.Input((4,))
    base = keras.Model(inputs, layers.Dense(4, "softmax")(inputs))
    compiled(base, "sgd", "mse")
    base.trainable = False

    class Mix(layers.Layer):
        def call(self, a, b):
            return tf.einsum("bi,bj->bij", a, b)

    outer = keras.Input((4,))
    x = layers.Flatten()(Mix()(base(outer), layers.Dense(3)(outer)))
    return Trial(keras.Model(outer, layers.Dense(1)(x)), normal(4), normal(1))


@program()
def ensemble(compiled):
    """The mean of members, each of which was compiled."""
    members = [network(6, 1) for _ in range(3)]
    for member in members:
        member.build((None, 4))
        compiled(member, "sgd", "mse")

    class Ensemble(keras.Model):
        def __init__(self):
            super().__init__()
            self.members = members
            self.weigh = layers.Dense(3, "softmax")

        def call(self, x):
            outputs = tf.concat([member(x) for member in self.members], axis=-1)
            return tf.reduce_sum(outputs * self.weigh(x), axis=-1, keepdims=True)

    return Trial(Ensemble(), normal(4), normal(1))


@program()
def wrapper_subclass():
    """A ``Wrapper`` that adds its layer's input to the output."""

    class Skip(layers.Wrapper):
        def call(self, x, **kwargs):
            return x + self.layer(x, **kwargs)

    model = keras.Sequential(
        [
            layers.Dense(4),
            Skip(layers.Dense(4, "softmax")),
            Skip(layers.LayerNormalization()),
            Skip(layers.Dropout(0.0)),
            layers.Dense(1),
        ]
    )
    return Trial(model, normal(4), normal(1))


@program()
def dense_subclass():
    """A subclass of ``Dense`` that goes on with what ``Dense`` computed."""

    class Scaled(layers.Dense):
        def call(self, x):
            return super().call(x) * 0.5 + tf.reduce_mean(x, axis=-1, keepdims=True)

    model = keras.Sequential([Scaled(4, "softmax"), Scaled(4, "elu"), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program()
def softmax_subclass():
    """Subclasses of layers that keras_mp computes in float32."""

    class Sharp(layers.Softmax):
        def call(self, x):
            return x * super().call(x * 2.0)

    class Norm(layers.LayerNormalization):
        def call(self, x):
            return x + super().call(x)

    model = keras.Sequential([layers.Dense(4), Sharp(), Norm(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program()
def layers_in_containers():
    """Layers in dicts and nested lists, found by Keras's tracker."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {"in": layers.Dense(4), "gates": [layers.Dense(4, "softmax")]}
            self.out = layers.Dense(1)

        def call(self, x):
            h = self.parts["in"](x)
            for gate in self.parts["gates"]:
                h = h * gate(x)
            return self.out(h)

    return Trial(Net(), normal(4), normal(1))


@program()
def layers_before_super():
    """A Functional subclass that stores layers first, as KerasHub's models do."""

    class Net(keras.Model):
        def __init__(self):
            self.dense = layers.Dense(4, "softmax")
            inputs = keras.Input((4,))
            x = self.dense(inputs) * inputs
            super().__init__(inputs=inputs, outputs=layers.Dense(1)(x))

    return Trial(Net(), normal(4), normal(1))


@program()
def float32_layer_inside():
    """A layer that its author put into float32, cast back by hand."""

    class Careful(layers.Layer):
        def __init__(self):
            super().__init__()
            self.softmax = layers.Softmax(dtype="float32")

        def call(self, x):
            return x * tf.cast(self.softmax(x), x.dtype)

    model = keras.Sequential([layers.Dense(4), Careful(), layers.Dense(1)])
    return Trial(model, normal(4), normal(1))


@program()
def several_outputs():
    """A list of outputs, one of which is also used inside."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.classes = layers.Dense(6, "relu"), layers.Dense(3)
            self.softmax, self.value = layers.Softmax(), layers.Dense(1)

        def call(self, x):
            x = self.body(x)
            p = self.softmax(self.classes(x))
            return [p, self.value(tf.concat([x, p], axis=-1))]

    loss = ["sparse_categorical_crossentropy", "mse"]
    options = {"metrics": [["accuracy"], ["mae"]], "loss_weights": [1.0, 0.5]}
    return Trial(Net(), normal(4), [ids(3), normal(1)], loss, options=options)


@program()
def autoencoder():
    class Autoencoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.Sequential([layers.Flatten(), layers.Dense(6, "relu")])
            self.decoder = keras.Sequential(
                [layers.Dense(16, "sigmoid"), layers.Reshape((4, 4))]
            )

        def call(self, x):
            return self.decoder(self.encoder(x))

    x = uniform(4, 4)
    return Trial(Autoencoder(), x, x, optimizer=keras.optimizers.Adam)
