"""What code of the user's own gets, and what flows on in graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mp
from keras_mp import policy_scope

X = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


class Sees(layers.Layer):
    """Notes in which dtype a layer inside it hands on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.seen = {}

    def call(self, x):
        y = self.inner(x)
        self.seen = {"in": dtype_of(x), "out": dtype_of(y)}
        return x


def functional(*inner):
    x = inputs = keras.Input((3, 4))
    for layer in inner:
        x = layer(x)
    return keras.Model(inputs, x)


def compiled():
    model = functional(layers.Dense(4, "softmax", name="kept"))
    keras_mp.compile(model, "sgd", "mse")
    return model


INNER = {
    "softmax": layers.Softmax,
    "function": lambda: layers.Dense(4, "softmax"),
    "activation": lambda: layers.Activation("exponential"),
    "rescaling": lambda: layers.Rescaling(0.5),
    "unit": layers.UnitNormalization,
    "follows": layers.Flatten,
    "rule": lambda: layers.Dense(4, name="kept"),
    "island": lambda: keras_mp.layers.Float32(layers.Dense(4)),
    "functional": lambda: functional(layers.Dense(4), layers.Softmax()),
    "operations": lambda: keras.Model(
        i := keras.Input((3, 4)), keras.ops.exp(layers.Dense(4)(i)) * 2.0
    ),
    "sequential": lambda: keras.Sequential([layers.Rescaling(0.5), layers.Flatten()]),
    "compiled": compiled,
    "time distributed": lambda: layers.TimeDistributed(layers.Dense(4, "softmax")),
    "embedding": lambda: functional(layers.Embedding(9, 4)),
    "attention": lambda: keras.Model(
        i := keras.Input((3, 4)), layers.MultiHeadAttention(1, 4)(i, i)
    ),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("way", ["set_policy", "convert"])
def test_code_sees_the_dtypes_that_keras_gives(name, low, way):
    policy = keras_mp.Policy(f"mixed_{low}", float32=["kept"])
    with policy_scope(policy if way == "set_policy" else "float32"):
        layer = Sees(INNER[name]())
        model = keras.Sequential([keras.Input((3, 4)), layer])
    if way == "convert":
        keras_mp.convert(model, policy)
    model(np.abs(X))
    assert layer.seen == {"in": low, "out": low}


def test_explicit_float32_stays_float32():
    with policy_scope("mixed_float16"):
        layer = Sees(layers.Softmax(dtype="float32"))
        layer(X)
    assert layer.seen == {"in": "float16", "out": "float32"}


def test_a_model_returns_float32_to_steps_only():
    with policy_scope("mixed_float16"):
        logits, model = (functional(layers.Dense(4, f)) for f in (None, "softmax"))
    for each in (logits, model):
        keras_mp.compile(each, "sgd", "categorical_crossentropy")
        assert each.predict(X, verbose=0).dtype == "float32"
    assert dtype_of(logits(X)) == "float16"
    # Its small probabilities are not rounded: float16 ends at 6e-8.
    model.layers[-1].set_weights([50 * np.eye(4), np.zeros(4)])
    smallest = model.predict(np.ones((1, 3, 1)) * [[[1.0, 0, 0, 0]]], verbose=0).min()
    assert 0 < smallest < 1e-20


def test_what_own_code_returns_is_unrounded_in_steps():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.softmax = layers.Softmax()

        def call(self, x):
            return self.softmax(x)

    with policy_scope("mixed_float16"):
        model = Own()
    keras_mp.compile(model, "sgd", "categorical_crossentropy")
    x = np.array([[50.0, 0.0]], "float32")
    assert float(model(x)[0, 1]) == 0  # as with Keras
    assert 0 < model.predict(x, verbose=0)[0, 1] < 1e-20


def test_ids_reach_an_embedding_unrounded_beside_numbers_in_16_bits():
    class Table(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(80_000, 2, embeddings_initializer=ids)
            self.out = layers.Dense(1)

        def build(self, shapes):
            self.embedding.build(shapes["id"])
            self.out.build((None, 3))

        def call(self, inputs):
            x = self.embedding(inputs["id"][:, 0])
            self.seen = dtype_of(inputs["number"])
            return tf.concat([x, inputs["number"]], -1)

    def ids(shape, dtype=None):
        return keras.ops.tile(keras.ops.arange(shape[0], dtype=dtype)[:, None], (1, 2))

    with policy_scope("mixed_bfloat16"):
        model = Table()
    data = {
        "id": np.array([[257.0], [70_001.0]], "float32"),
        "number": np.ones((2, 1), "float32"),
    }
    result = model.predict(data, verbose=0)
    assert model.seen == "bfloat16"
    # What is only looked up and joined is not rounded for who predicts.
    np.testing.assert_array_equal(result[:, 0], [257.0, 70_001.0])


def test_a_teacher_is_as_its_student():
    with policy_scope("mixed_float16"):
        teacher, student = compiled(), functional(layers.Dense(4))

        class Distiller(keras.Model):
            def __init__(self):
                super().__init__()
                self.student = student

            def call(self, x):
                return teacher(x) - student(x)  # of one dtype

        model = Distiller()
    keras_mp.compile(model, "sgd", "mse")
    assert np.isfinite(model.fit(X, X, verbose=0).history["loss"]).all()
