"""Containers of layers that read data do not round it on its way in."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import policy_scope

#: Ids of which float16 rounds the second to 2048 and has no third.
IDS = np.array([[1.0, 2049.0, 70001.0]], "float32")


class Embeds(keras.Model):
    def __init__(self, embedding=None):
        super().__init__()
        self.shift = self.add_weight(shape=(), initializer="zeros")
        self.inner = embedding or layers.Embedding(80_000, 2)
        self.seen = None

    def call(self, inputs):
        self.seen = self.shift * 1.0
        return self.inner(inputs)


def sequential():
    return keras.Sequential([layers.Flatten(), layers.Embedding(80_000, 2)])


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


MAKERS = {
    "subclassed": Embeds,
    "nested": lambda: Embeds(Embeds()),
    "sequential": sequential,
    "sequential inside": lambda: Embeds(sequential()),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_ids_in_floats_are_not_rounded(name, low):
    with policy_scope(f"mixed_{low}"):
        model = MAKERS[name]()
    result = model(keras.ops.convert_to_tensor(IDS))
    (table,) = (layer for layer in model._flatten_layers() if "embedding" in layer.name)
    exact = keras.ops.take(table.embeddings, IDS.astype("int32"), axis=0)
    assert dtype_of(result) == low
    np.testing.assert_array_equal(result, keras.ops.cast(exact, low))


def test_a_converted_model_does_not_round_either():
    model = Embeds()
    keras_mp.convert(model, "mixed_float16")
    assert np.isfinite(keras.ops.cast(model(IDS), "float32")).all()


def test_the_weights_of_the_container_are_read_in_low_precision():
    with policy_scope("mixed_float16"):
        model = Embeds(Embeds())
    model(keras.ops.convert_to_tensor(IDS))
    assert dtype_of(model.seen) == dtype_of(model.inner.seen) == "float16"
    assert model.shift.dtype == "float32"


def test_other_containers_cast_as_before():
    class Adds(keras.Model):
        def call(self, inputs):
            return inputs + 1

    with policy_scope("mixed_float16"):
        assert dtype_of(Adds()(IDS)) == "float16"


@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_normalization_sees_large_data_whole(kind):
    data = 1e6 + 1e4 * np.random.default_rng(0).standard_normal((64, 3))
    with policy_scope("mixed_float16"):
        normalization = layers.Normalization()
        normalization.adapt(data)
        if kind == "functional":
            inputs = keras.Input((3,))
            model = keras.Model(inputs, normalization(inputs))
        elif kind == "sequential":
            model = keras.Sequential([normalization])
        else:
            model = Embeds(normalization)
    result = keras.ops.cast(
        model(keras.ops.convert_to_tensor(data, "float32")), "float32"
    )
    # Of 64 numbers; the data would be infinite in float16.
    np.testing.assert_allclose([np.mean(result), np.std(result)], [0, 1], atol=1e-2)
