"""`export`: the artefact computes in float32 and agrees, the model stays as it was.

Where nothing else is said, predictions may differ by 1e-5 of the largest one: kernels
sum in other orders, and eps of float32 is 1.2e-7, while a single rounding to float16
costs 5e-4, so that low precision anywhere would show.
"""

import importlib.util
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import private
from keras_mp.export import agreement, formats, precision

CLOSE = 1e-5

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in formats.ONNX.needs),
    reason="tf2onnx and onnxruntime are not installed: pip install '.[export]'",
)
ALL = ["saved_model", "tflite", pytest.param("onnx", marks=needs_onnx)]
SUFFIXES = {"saved_model": "model", "tflite": "model.tflite", "onnx": "model.onnx"}

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


def trained(model, x, y, policy="mixed_float16", loss="mse", steps=2):
    keras_mp.compile(model, "adam", loss, policy=policy)
    model.fit(x, y, batch_size=-(-len(y) // steps), epochs=1, verbose=0)
    return model


def images(rows=8, size=32):
    return np.random.default_rng(0).random((rows, size, size, 3), dtype="float32")


def mobilenet():
    """MobileNet's logits: softmax would hide differences."""
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


# Keras's own way


def test_keras_own_export_serves_float16(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.export(tmp_path / "keras", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "keras")
    assert loaded.serve(np.ones((1, 4), "float32")).dtype == tf.float16
    keras_mp.export(model, tmp_path / "ours")
    loaded = tf.saved_model.load(tmp_path / "ours")
    assert loaded.serve(np.ones((1, 4), "float32")).dtype == tf.float32


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


# Models


@pytest.mark.parametrize("format", ALL)
def test_mobilenet(tmp_path, format):
    check_export(mobilenet(), [images(3)], tmp_path, format)


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
@pytest.mark.parametrize("format", ALL)
def test_transformer(tmp_path, format, kind):
    model = transformer(kind)
    ids = token_ids(5)
    ids = ids.astype("float32") if kind == "subclassed" else ids
    check_export(model, [ids], tmp_path, format)


def test_ids_of_a_subclassed_model_stay_integers_if_told(tmp_path):
    model = transformer("subclassed")
    spec = keras.InputSpec(shape=(None, 12), dtype="int32")
    check_export(model, [token_ids(5)], tmp_path, "tflite", input_signature=[spec])


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


def test_several_arguments_need_a_signature(tmp_path):
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, a, b):
            return self.dense(a + b["c"])

    with keras_mp.policy_scope("mixed_float16"):
        model = Sum()
    x = np.ones((2, 3), "float32")
    model(x, {"c": x})
    with pytest.raises(ValueError, match="input_signature"):
        keras_mp.export(model, tmp_path / "model")
    spec = keras.InputSpec(shape=(None, 3), dtype="float32")
    options = {"input_signature": [spec, {"c": spec}]}
    sample = (x, {"c": 2 * x})
    check_export(model, [*sample], tmp_path, "tflite", **options, sample=sample)


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


# What stays as it was


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


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_training_goes_on_bit_for_bit(tmp_path, kind):
    def weights(exports):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = transformer(kind)
        before = policies_of(model), model.train_function, model.optimizer
        if exports:
            keras_mp.export(model, tmp_path / "model")
            keras_mp.export(model, tmp_path / "model.tflite")
        assert (policies_of(model), model.train_function, model.optimizer) == before
        model.fit(token_ids(), np.ones((8, 3)), batch_size=4, verbose=0)
        return [*model.get_weights(), *model.optimizer.variables]

    for each, other in zip(weights(False), weights(True), strict=True):
        np.testing.assert_array_equal(each, other)


def test_a_failed_trace_restores_the_model(tmp_path):
    class Stubborn(keras.layers.Layer):
        def call(self, x):
            return keras.ops.cast(keras.ops.cast(x, "float16") * 2, self.compute_dtype)

    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(2), Stubborn(name="stubborn")]
        )
    before = policies_of(model)
    with pytest.raises(ValueError, match="operations that are in float16.*stubborn"):
        keras_mp.export(model, tmp_path / "model")
    assert policies_of(model) == before and os.listdir(tmp_path) == []
    assert model(np.ones((1, 4))).dtype == "float16"


def test_state_and_losses_are_put_back(tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input(batch_shape=(2, 3, 4)),
                keras.layers.Dense(4, activity_regularizer="l2"),
                keras.layers.LSTM(2, stateful=True),
            ]
        )
    x = np.ones((2, 3, 4), "float32")
    model(x)
    losses = [float(loss) for loss in model.losses]
    states = [np.array(each) for each in model.non_trainable_variables]
    keras_mp.export(model, tmp_path / "model")
    assert [float(loss) for loss in model.losses] == losses
    for each, other in zip(model.non_trainable_variables, states, strict=True):
        np.testing.assert_array_equal(each, other)


def test_an_input_that_was_made_in_float16(tmp_path):
    """The model rounds to it, its export does not; 2049 has no float16."""
    inputs = keras.Input((1,), dtype="float16")
    model = keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs))
    x = np.full((1, 1), 2049, "float32")
    exported = keras_mp.export(model, tmp_path / "model", sample=x)
    assert run(exported, [x], model)[0] == 2049
    assert model(x) == 2048 and model.input.dtype == "float16"


def test_replicas(tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(2),
                keras.layers.BatchNormalization(),
            ]
        )
        keras_mp.compile(model, "adam", loss="mse", policy="mixed_float16")
    x = np.random.default_rng(0).random((8, 4), dtype="float32")
    model.fit(x, x[:, :2], verbose=0)
    check_export(model, [x], tmp_path, "tflite")


# Files


def test_what_is_there_is_kept_unless_told(tmp_path):
    model = dense()
    for name in ("model", "model.tflite"):
        first = keras_mp.export(model, tmp_path / name)
        with pytest.raises(ValueError, match="overwrite=True"):
            keras_mp.export(model, tmp_path / name)
        again = keras_mp.export(model, tmp_path / name, overwrite=True)
        assert again.path == first.path == tmp_path / name
    assert sorted(os.listdir(tmp_path)) == ["model", "model.tflite"]


@pytest.mark.parametrize("name", ["model", "model.tflite"])
@pytest.mark.parametrize("stage", ["verify", "move"])
def test_a_failed_export_keeps_what_is_there(tmp_path, monkeypatch, name, stage):
    model = dense()
    path = keras_mp.export(model, tmp_path / name).path
    before = contents(path)

    def fail(source, *rest):
        if stage == "verify" or "new" in source.parts:
            raise OSError("no")
        return rename(source, *rest)

    rename = os.rename
    if stage == "verify":
        monkeypatch.setattr(agreement, "checked", fail)
    else:
        monkeypatch.setattr(os, "rename", fail)
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        keras_mp.export(model, path, overwrite=True)
    assert contents(path) == before and os.listdir(tmp_path) == [name]


def contents(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {each: each.read_bytes() for each in files if each.is_file()}


def test_other_folders_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("")
    with pytest.raises(ValueError, match="other contents"):
        keras_mp.export(dense(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis").is_file()


# What is refused


def test_paths_and_formats_that_are_refused(tmp_path):
    model = dense()
    with pytest.raises(ValueError, match=r"suffix '.pb'.*'tflite'"):
        keras_mp.export(model, tmp_path / "model.pb")
    with pytest.raises(ValueError, match="format='litert'.*'tflite'"):
        keras_mp.export(model, tmp_path / "model", "litert")
    with pytest.raises(ValueError, match="no folder"):
        keras_mp.export(model, tmp_path / "absent" / "model")
    assert keras_mp.export(model, tmp_path / "model.v1", "saved_model").path.is_dir()


def test_models_that_are_refused(tmp_path):
    with pytest.raises(TypeError, match="needs a keras model"):
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


def test_predictions_that_do_not_agree(tmp_path):
    class Counts(keras.layers.Layer):
        calls = 0

        def call(self, x):
            self.calls += 1
            return x + self.calls

    model = keras.Sequential([keras.Input((4,)), Counts()])
    with pytest.raises(ValueError, match="does not predict as the model.*verify=False"):
        keras_mp.export(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []
    exported = keras_mp.export(model, tmp_path / "model.tflite", verify=False)
    assert exported.difference is None


def test_a_model_that_random_inputs_mean_nothing_to(tmp_path):
    class Roots(keras.layers.Layer):
        def call(self, x):
            if not keras.ops.is_tensor(x) or tf.inside_function():
                return x
            raise RuntimeError("no roots")

    model = keras.Sequential([keras.Input((4,)), Roots()])
    with pytest.raises(ValueError, match="raised the RuntimeError.*Pass sample"):
        keras_mp.export(model, tmp_path / "model")


def test_a_sample_of_another_structure(tmp_path):
    x = np.ones((1, 4), "float32")
    with pytest.raises(ValueError, match="needs 1 arrays.*Got 2"):
        keras_mp.export(dense(), tmp_path / "model", sample=[x, x])


@needs_onnx
def test_an_operation_that_onnx_lacks(tmp_path):
    class Bessel(keras.layers.Layer):
        def call(self, x):
            return tf.math.bessel_i0e(x)

    model = keras.Sequential([keras.Input((4,)), Bessel()])
    with pytest.raises(ValueError, match="lacks one of its operations.*BesselI0e"):
        keras_mp.export(model, tmp_path / "model.onnx", verify=False)
    assert os.listdir(tmp_path) == []


def test_onnx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras_mp\[export\]'"):
        keras_mp.export(dense(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "got, expected, difference",
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([2.0, 3.0], [2.0, 4.0], 0.25),
        ([0.0, np.nan], [0.0, 1.0], np.inf),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], np.inf),
        ([1.0], [1], np.inf),
        ([1.0, 1.0], [1.0], np.inf),
    ],
)
def test_differences(got, expected, difference):
    assert agreement.difference(np.array(got), np.array(expected)) == difference


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_a_graph_with_rounded_constants_and_casts(policy, format, tmp_path):
    with keras_mp.policy_scope(policy):
        ids = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(10, 8)(ids)
        # As in KerasHub's Gemma: a constant in the dtype of the time.
        x = x * keras.ops.cast(keras.ops.sqrt(10.0), x.dtype)
        mask = keras.ops.cast(keras.ops.not_equal(ids, 0), x.dtype)
        x = x * mask[..., None] + keras.ops.one_hot(ids, 8, dtype=x.dtype)
        model = keras.Model(ids, keras.layers.Dense(3)(x))
    before = model(np.arange(8).reshape(2, 4))
    exported = keras_mp.export(model, tmp_path / SUFFIXES[format])
    assert exported.difference <= CLOSE
    after = model(np.arange(8).reshape(2, 4))
    assert after.dtype == before.dtype  # the graph has its casts again
    np.testing.assert_array_equal(after, before)


def test_a_product_in_low_precision_is_refused_beside_constants(tmp_path):
    class Stubborn(keras.layers.Layer):
        def call(self, x):
            factor = keras.ops.cast(3.3, "float16")
            return keras.ops.cast(keras.ops.cast(x, "float16") * factor, "float32")

    model = keras.Sequential([keras.Input((4,)), Stubborn()])
    with pytest.raises(ValueError, match="operations that are in float16"):
        keras_mp.export(model, tmp_path / "model")
