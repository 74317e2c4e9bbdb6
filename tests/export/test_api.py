"""`export`: the artefact computes in float32 and agrees, of models of any kind."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.exported import (
    ALL,
    CLOSE,
    Transformer,
    check_export,
    images,
    mobilenet,
    policies_of,
    run,
    shared_transformer,
    token_ids,
    trained,
)

import keras_mp

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


def test_keras_own_export_serves_float16(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.export(tmp_path / "keras", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "keras")
    assert loaded.serve(np.ones((1, 4), "float32")).dtype == tf.float16
    keras_mp.export(model, tmp_path / "ours")
    loaded = tf.saved_model.load(tmp_path / "ours")
    assert loaded.serve(np.ones((1, 4), "float32")).dtype == tf.float32


@pytest.mark.long
def test_tflite_of_a_float16_convolution_fails_without_us(tmp_path):
    convolutions = [keras.layers.Conv2D(4, 3) for _ in range(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *convolutions])
    x = images(4, 8)
    trained(model, x, np.ones((4, 4, 4, 4)))
    model.export(tmp_path / "keras", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "keras"))
    with pytest.raises(Exception, match="Conv2D"):
        converter.convert()
    check_export(model, [x], tmp_path, "tflite")


@pytest.mark.long
@pytest.mark.every(3)
@pytest.mark.parametrize("format", ALL)
def test_mobilenet(tmp_path, format):
    check_export(mobilenet(), [images(3)], tmp_path, format)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["functional", "subclassed"])
@pytest.mark.parametrize("format", ALL)
def test_transformer(tmp_path, format, kind):
    model = shared_transformer(kind)
    ids = token_ids(5)
    ids = ids.astype("float32") if kind == "subclassed" else ids
    check_export(model, [ids], tmp_path, format)


@pytest.mark.long
def test_ids_of_a_subclassed_model_stay_integers_if_told(tmp_path):
    model = shared_transformer("subclassed")
    spec = keras.InputSpec(shape=(None, 12), dtype="int32")
    check_export(model, [token_ids(5)], tmp_path, "tflite", input_signature=[spec])


@pytest.mark.long
@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_bfloat16", "float32"])
@pytest.mark.parametrize("format", ALL)
def test_policies(tmp_path, format, policy):
    with keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(4, 3),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.LayerNormalization(),
                keras.layers.Dense(2),
            ]
        )
    check_export(model, [images(3, 8)], tmp_path, format)


def test_policy_with_rules_and_islands(tmp_path):
    policy = keras_mp.Policy("mixed_float16", float32=["head"])
    with keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras_mp.layers.Float32(keras.layers.Dense(8), output_dtype="bfloat16"),
                keras_mp.layers.Softmax(),
                keras.layers.Dense(4, activation="softmax"),
                keras.layers.Dense(2, name="head"),
                keras_mp.layers.UnitNormalization(),
            ]
        )
    before = policies_of(model)
    exported = keras_mp.export(model, tmp_path / "model")
    assert policies_of(model) == before
    assert [each.dtype for each in run(exported, [np.ones((1, 4), "f")], model)] == [
        np.dtype("float32")
    ]
    assert model.layers[0].output_dtype == "bfloat16"


def two_inputs(structure):
    """A model that takes a picture and a mask of steps, and has two outputs."""
    a, b = keras.Input((4,), name="a"), keras.Input((4, 3), name="b")
    summary = keras.layers.LSTM(4)(keras.layers.Masking()(b))
    x = keras.layers.Concatenate()([keras.layers.Dense(4)(a), summary])
    first, second = keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)
    if structure == "dict":
        return keras.Model({"b": b, "a": a}, {"second": second, "first": first})
    return keras.Model([a, b], [first, second])


def two_arrays(structure):
    generator = np.random.default_rng(0)
    a = generator.random((1, 4), dtype="float32")
    b = generator.random((1, 4, 3), dtype="float32")
    b[:, 2:] = 0  # masked
    return {"b": b, "a": a} if structure == "dict" else [a, b]


@pytest.mark.long
@pytest.mark.parametrize("structure", ["dict", "list"])
@pytest.mark.parametrize("format", ALL)
def test_several_inputs_masks_and_recurrence(tmp_path, format, structure):
    """TFLite has an LSTM of its own for a fixed batch size only."""
    x = two_arrays(structure)
    model = two_inputs(structure)
    specs = keras.tree.map_structure(
        lambda array: keras.InputSpec(shape=array.shape, dtype="float16"), x
    )
    with keras_mp.policy_scope("float32"):
        keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    check_export(model, [x], tmp_path, format, input_signature=[specs])


def test_a_recurrent_tflite_of_any_batch_size(tmp_path):
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(2)])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    has_flex = tf.__version__ < "2.20"
    if has_flex:
        assert keras_mp.export(model, tmp_path / "m.tflite").difference <= CLOSE
        return
    with pytest.warns(UserWarning, match="saved but not verified.*Flex"):
        exported = keras_mp.export(model, tmp_path / "m.tflite")
    assert exported.difference is None and exported.path.is_file()


@pytest.mark.parametrize("adapted", [True, False])
def test_normalization_of_large_data(tmp_path, adapted):
    """In float16, in which the layer keeps its statistics, 1e6 is inf."""
    x = np.random.default_rng(0).normal(1e6, 1e5, (64, 3)).astype("float32")
    with keras_mp.policy_scope("mixed_float16"):
        given = {} if adapted else {"mean": x.mean(0), "variance": x.var(0)}
        layer = keras.layers.Normalization(**given)
        if adapted:
            layer.adapt(x)
        model = keras.Sequential([keras.Input((3,)), layer])
    before = vars(layer)["mean"]
    exported = keras_mp.export(model, tmp_path / "model", sample=x)
    (got,) = run(exported, [x], model)
    np.testing.assert_allclose(got, (x - x.mean(0)) / x.std(0), atol=1e-4)  # of 4
    assert vars(layer)["mean"] is before


def test_text_goes_in_as_text(tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((), dtype="string"),
                keras.layers.StringLookup(vocabulary=["cat", "dog"]),
                keras.layers.Embedding(3, 4),
                keras.layers.Dense(2),
            ]
        )
    exported = keras_mp.export(model, tmp_path / "model", sample=np.array(["dog"]))
    assert exported.difference <= CLOSE


def test_models_that_are_refused(tmp_path):
    with pytest.raises(TypeError, match="needs a Keras model"):
        keras_mp.export(keras.layers.Dense(1), tmp_path / "model")
    for unbuilt in (keras.Sequential([keras.layers.Dense(1)]), Transformer(2)):
        with pytest.raises(ValueError, match="not built"):
            keras_mp.export(unbuilt, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_quantized_layers(tmp_path):
    for policy in ("mixed_bfloat16", "float32"):
        with keras_mp.policy_scope(policy):
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.layers[-1].quantize("int8")
        if policy == "float32":
            assert keras_mp.export(model, tmp_path / "model").difference <= CLOSE
            continue
        with pytest.raises(ValueError, match="quantized.*before model.quantize"):
            keras_mp.export(model, tmp_path / "model")
