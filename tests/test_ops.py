"""`keras_mp.float32` and the operations it is applied to, against NumPy in float64."""

import functools
import inspect

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import keras_mp

LOW = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
NAMES = [
    name
    for name, value in vars(keras_mp.ops).items()
    if callable(value) and getattr(ops, name, None) is not None
]


def plain(function):
    """Return a function of `keras.ops` as one of NumPy arrays in float64."""

    def run(x, **arguments):
        return ops.convert_to_numpy(function(ops.cast(x, "float64"), **arguments))

    return run


def exp_sum(x, axis):
    return np.exp(x).sum(axis, keepdims=True)


# For each operation: what is asked of it, and the same in NumPy. Values lie on both
# sides of where 16 bits overflow, vanish or lose their digits.
CASES = {
    "softmax": (dict(axis=-1), lambda x, axis: np.exp(x) / exp_sum(x, axis)),
    "log_softmax": (dict(axis=-1), lambda x, axis: x - np.log(exp_sum(x, axis))),
    "logsumexp": (dict(axis=-1), lambda x, axis: np.log(np.exp(x).sum(axis))),
    "softplus": ({}, lambda x: np.log1p(np.exp(x))),
    "sum": (dict(axis=-1), np.sum),
    "cumsum": (dict(axis=-1), np.cumsum),
    "prod": (dict(axis=-1), np.prod),
    "cumprod": (dict(axis=-1), np.cumprod),
    "mean": (dict(axis=-1), np.mean),
    "average": (dict(axis=-1), np.average),
    "var": (dict(axis=-1), np.var),
    "std": (dict(axis=-1), np.std),
    "norm": (dict(axis=-1), np.linalg.norm),
    "normalize": (
        dict(axis=-1),
        lambda x, axis: x / np.linalg.norm(x, axis=axis, keepdims=True),
    ),
    "exp": ({}, np.exp),
    "expm1": ({}, np.expm1),
    "log": ({}, np.log),
    "log1p": ({}, np.log1p),
    "log2": ({}, np.log2),
    "log10": ({}, np.log10),
    "power": (dict(x2=3.0), lambda x, x2: x**x2),
    "reciprocal": ({}, np.reciprocal),
    "rsqrt": ({}, lambda x: 1 / np.sqrt(x)),
    "arccos": ({}, np.arccos),
    "arcsin": ({}, np.arcsin),
    "cosh": ({}, np.cosh),
    "sinh": ({}, np.sinh),
    "tan": ({}, np.tan),
    "erfinv": ({}, plain(ops.erfinv)),
}
INPUTS = {
    "var": [300.0, 1e-4],
    "std": [300.0, 1e-4],
    "norm": [300.0, 1e-4],
    "normalize": [300.0, 1e-4],
    "mean": [3000.0, 1e-4],
    "average": [3000.0, 1e-4],
}


def test_every_operation_has_a_case():
    assert set(NAMES) == set(CASES)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_rounds_once(name, dtype):
    """The result is the exact one of the same inputs, rounded to their dtype."""
    arguments, exact = CASES[name]
    random = np.random.default_rng(0).uniform(0.1, 0.9, size=(4, 64))
    for size in INPUTS.get(name, [1.0]):
        x = ops.cast(random * size, dtype)
        y = getattr(keras_mp.ops, name)(x, **arguments)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        expected = exact(ops.convert_to_numpy(ops.cast(x, "float64")), **arguments)
        low = expected.astype(LOW[dtype])
        # One unit in the last place: float32's error may decide how it is rounded.
        above = np.spacing(np.abs(low)).astype("float64")
        error = np.abs(ops.convert_to_numpy(ops.cast(y, "float64")) - expected)
        assert (error <= above).all(), (error / above).max()


@pytest.mark.parametrize("dtype", LOW)
def test_gradients_are_computed_in_float32_too(dtype):
    import tensorflow as tf

    x = tf.constant(np.full((1, 64), 300.0), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = keras_mp.ops.norm(x, axis=-1)
    gradient = tape.gradient(y, x)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(tf.cast(gradient, "float32"), np.full((1, 64), 1 / 8))


def test_floats_are_widened_in_any_structure_and_the_rest_passes():
    seen = {}

    @keras_mp.float32
    def function(pair, *, options, training=None):
        seen.update(pair=pair, **options, training=training)
        return {"low": pair[0] + 1, "ids": options["ids"], "text": "as it was"}

    half, ids = ops.ones((2,), "float16"), ops.ones((2,), "int32")
    out = function((half, None), options={"ids": ids, "low": half}, training=True)
    dtypes = [keras.backend.standardize_dtype(seen[k].dtype) for k in ("low", "ids")]
    assert dtypes == ["float32", "int32"]
    assert keras.backend.standardize_dtype(seen["pair"][0].dtype) == "float32"
    assert seen["pair"][1] is None and seen["training"] is True
    assert keras.backend.standardize_dtype(out["low"].dtype) == "float16"
    assert out["ids"] is ids and out["text"] == "as it was"


@pytest.mark.parametrize(
    "dtypes, result",
    [
        (["float16"], "float16"),
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["float16", "int32"], "float16"),
        # As Keras promotes them; neither holds what the other does.
        (["float16", "bfloat16"], "float32"),
        (["float16", "float32"], "float32"),
        (["float64"], "float64"),
        (["int32"], "int32"),
    ],
)
def test_results_have_the_dtype_of_the_arguments(dtypes, result):
    total = keras_mp.float32(lambda *tensors: functools.reduce(ops.add, tensors))
    y = total(*(ops.ones((2,), dtype) for dtype in dtypes))
    assert keras.backend.standardize_dtype(y.dtype) == result


@pytest.mark.parametrize(
    "make", [np.asarray, keras.Variable], ids=["array", "variable"]
)
def test_arrays_and_variables_are_widened(make):
    x = make(np.full((64,), 300.0, "float16"))
    y = keras_mp.ops.norm(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    assert float(y) == 2400.0


@keras.saving.register_keras_serializable("test_ops")
class Offset(keras.layers.Layer):
    def build(self, input_shape):
        self.offset = self.add_weight(shape=(), initializer="zeros")
        self.offset.assign(2049.0)

    @keras_mp.float32
    def call(self, inputs, training=None):
        return inputs + (self.offset - 2048.0)


def test_a_call_reads_its_weights_as_they_are():
    """2049 is 2048 in float16."""
    layer = Offset(dtype="mixed_float16")
    y = layer(np.zeros((1, 2), "float32"))
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    np.testing.assert_array_equal(y, np.ones((1, 2)))
    # The layers after it have Keras's casts again.
    dense = keras.layers.Dense(1, dtype="mixed_float16")
    assert keras.backend.standardize_dtype(dense(y).dtype) == "float16"
    assert list(inspect.signature(layer.call).parameters) == ["inputs", "training"]


def test_masks_stay_on_the_tensors():
    """Layers that a decorated function calls read them there, and those after it."""

    @keras_mp.float32
    def mean(inputs):
        return keras.layers.GlobalAveragePooling1D(dtype="float32")(inputs)

    @keras_mp.float32
    def masked(inputs):
        return keras.layers.Masking(mask_value=9.0, dtype="float32")(inputs)

    y = masked(ops.convert_to_tensor(np.array([[[1.0], [9.0]]], "float16")))
    np.testing.assert_array_equal(y._keras_mask, [[True, False]])
    y = ops.cast(y, "float16") + 1  # 2 and 1, and the mask is gone
    y._keras_mask = ops.convert_to_tensor([[True, False]])
    assert float(mean(y)[0, 0]) == 2.0


def test_a_model_of_such_functions_is_saved_without_keras_mp(tmp_path):
    inputs = keras.Input((8,), dtype="float16")
    model = keras.Model(inputs, keras_mp.ops.normalize(inputs))
    x = np.full((2, 8), 300.0, "float16")
    before = model(x)
    np.testing.assert_allclose(before, np.full((2, 8), 8**-0.5), rtol=2**-11)
    model.save(tmp_path / "model.keras")
    assert "keras_mp" not in str(model.get_config())
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(before, loaded(x))


@pytest.mark.parametrize("value", [3, keras.layers.Dense(2)], ids=["number", "layer"])
def test_what_is_no_function_is_refused(value):
    with pytest.raises(TypeError, match="needs a function.*layers.Float32"):
        keras_mp.float32(value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_result_can_be_asked_for_in_another_dtype(dtype):
    """The exponential of 12 is 162,755, which float16 cannot hold."""

    @keras_mp.float32(output_dtype="float32")
    def steep(x):
        return ops.exp(x)

    y = steep(ops.full((2,), 12.0, dtype=dtype))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_allclose(y, np.exp([12.0, 12.0]), rtol=1e-6)  # float32's own


def test_a_dtype_that_is_no_float_is_refused():
    with pytest.raises(ValueError, match=r"float32\(output_dtype='int8'\)"):
        keras_mp.float32(ops.exp, output_dtype="int8")
