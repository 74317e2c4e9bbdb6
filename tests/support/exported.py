"""Models to export, and what an artefact of them is held to.

Where nothing else is said, predictions may differ by 1e-5 of the largest one: kernels
sum in other orders, and eps of float32 is 1.2e-7, while a single rounding to float16
costs 5e-4, so that low precision anywhere would show.
"""

import functools
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import private
from keras_mp.export import formats, precision

CLOSE = 1e-5

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in formats.ONNX.needs),
    reason="tf2onnx and onnxruntime are not installed: pip install '.[export]'",
)

ALL = ["saved_model", "tflite", pytest.param("onnx", marks=needs_onnx)]

SUFFIXES = {"saved_model": "model", "tflite": "model.tflite", "onnx": "model.onnx"}


def trained(model, x, y, policy="mixed_float16", loss="mse", steps=2):
    keras_mp.compile(model, "adam", loss, policy=policy)
    model.fit(x, y, batch_size=-(-len(y) // steps), epochs=1, verbose=0)
    return model


def images(rows=8, size=32):
    return np.random.default_rng(0).random((rows, size, size, 3), dtype="float32")


@functools.cache
def mobilenet():
    """MobileNet, which an export leaves as it is; softmax would hide differences."""
    model = keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trained(model, images(), np.arange(8) % 5, loss=loss)


class Block(keras.layers.Layer):
    """Attention and a dense layer, each with what goes around it."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, width // 2)
        self.norm = keras.layers.LayerNormalization()
        self.dense = keras.layers.Dense(width, activation="gelu")
        self.dropout = keras.layers.Dropout(0.1)

    def build(self, shape):
        self.attention.build(shape, shape)
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x):
        x = self.norm(x + self.attention(x, x))
        return x + self.dropout(self.dense(x))


class Transformer(keras.Model):
    """A small classifier of token ids, of a class that has no `get_config`."""

    def __init__(self, classes):
        super().__init__()
        self.embed = keras.layers.Embedding(50, 16)
        self.blocks = [Block(16), Block(16)]
        self.pool = keras.layers.GlobalAveragePooling1D()
        self.head = keras.layers.Dense(classes)

    def call(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


def token_ids(rows=8):
    return np.random.default_rng(0).integers(0, 50, (rows, 12)).astype("int32")


def functional_transformer():
    ids = keras.Input((12,), dtype="int32", name="ids")
    return keras.Model(ids, Transformer(3).call(ids))


def transformer(kind):
    model = functional_transformer() if kind == "functional" else Transformer(3)
    return trained(model, token_ids(), np.ones((8, 3)))


@functools.cache
def shared_transformer(kind):
    """A transformer for tests that only export it."""
    return transformer(kind)


def dense(policy="mixed_float16", **options):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(2, **options),
        ]
    )
    x = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)
    return trained(model, x, x[:, :2], policy)


def run(exported, inputs, model):
    """Return what an artefact predicts for a list of arguments, as flat arrays."""
    specs = keras.tree.map_structure(
        lambda array, name: tf.TensorSpec(array.shape, array.dtype, name),
        inputs,
        input_names(exported, inputs),
    )
    inputs = [keras.tree.map_structure(tf.constant, each) for each in inputs]
    expected = model(*inputs, training=False)
    return formats.FORMATS[exported.format].predict(
        exported.path, specs, expected, keras.tree.map_structure(np.asarray, inputs)
    )


def input_names(exported, inputs):
    """Return the names in an artefact's signature, in the structure of ``inputs``."""
    flat = keras.tree.flatten(inputs)
    if exported.format == "saved_model":
        return keras.tree.pack_sequence_as(inputs, [str(i) for i in range(len(flat))])
    if exported.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(exported.path))
        names = [each.name for each in session.get_inputs()]
    else:
        runner = formats._interpreter(exported.path).get_signature_runner()
        names = list(runner.get_input_details())
    return keras.tree.pack_sequence_as(inputs, names)


def float32_predictions(model, inputs):
    """Return what a model with the same weights, put under float32 for good, says."""
    for layer in private.layers.walk(model):
        keras_mp.policies.put_under(layer, keras_mp.policies.FLOAT32)
    inputs = [keras.tree.map_structure(tf.constant, each) for each in inputs]
    outputs = precision.predict(model, inputs)
    return [np.asarray(each) for each in keras.tree.flatten(outputs)]


def check_export(model, inputs, path, format, **options):
    """Export, run with other rows than the export did, and compare with float32."""
    exported = keras_mp.export(model, path / SUFFIXES[format], format, **options)
    assert exported.format == format and exported.difference <= CLOSE
    got = run(exported, inputs, model)
    expected = float32_predictions(model, inputs)
    for each, other in zip(got, expected, strict=True):
        assert each.dtype == other.dtype and each.shape == other.shape
        assert np.abs(each - other).max() <= CLOSE * np.abs(other).max()
    return exported


def policies_of(model):
    """Return the identity of every policy, and what an export changes for a while."""
    return [
        (
            id(layer._dtype_policy),
            id(vars(layer).get("outer_policy")),
            id(vars(layer).get("mean")),
            id(layer._losses),
            vars(layer).get("output_dtype"),
            layer.compute_dtype,
        )
        for layer in private.layers.walk(model)
    ]
