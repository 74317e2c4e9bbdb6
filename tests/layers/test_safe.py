"""The float32 islands against Keras's layers and against NumPy in float64."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import layers as ours

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
LOGITS = np.random.default_rng(1).normal(scale=4.0, size=(64, 50)).astype("float32")

# Our layer and Keras's, with the same arguments.
PAIRS = {
    "softmax": lambda m: m.Softmax(),
    "softmax_axis": lambda m: m.Softmax(axis=0),
    "activation_softmax": lambda m: m.Activation("softmax"),
    "activation_gelu": lambda m: m.Activation("gelu"),
    "activation_function": lambda m: m.Activation(keras.ops.sigmoid),
    "layer_norm": lambda m: m.LayerNormalization(epsilon=1e-6),
    "layer_norm_plain": lambda m: m.LayerNormalization(center=False, scale=False),
    "unit_norm": lambda m: m.UnitNormalization(),
    "unit_norm_axis": lambda m: m.UnitNormalization(axis=[0, 1]),
}

# Spacing of floats relative to their size; of float16 and bfloat16, below which size
# it no longer shrinks.
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}
TINY = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def ulp(numbers, dtype):
    """Return the distance to the next float of ``dtype`` at each of ``numbers``."""
    size = np.maximum(np.abs(numbers), TINY[dtype])
    return 2.0 ** np.floor(np.log2(size)) * EPSILON[dtype]


def softmax(x):
    shifted = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def in_float64(tensor):
    return np.asarray(tensor).astype("float64")


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_as_keras_in_float32_rounded_to_the_output(pair, low):
    expected = pair(keras.layers)(X)
    with keras_mp.policy_scope(f"mixed_{low}"):
        result = pair(ours)(X)
    assert result.dtype == low
    # Both compute alike in float32; ours rounds the result once, by half an ulp.
    error = np.abs(in_float64(result) - in_float64(expected))
    assert np.all(error <= 0.5 * ulp(in_float64(expected), low))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_float32_output_is_keras_in_float32(pair, policy):
    expected = pair(keras.layers)(X)
    with keras_mp.policy_scope(policy):
        layer = type(pair(ours)).from_config(
            {**pair(ours).get_config(), "output_dtype": "float32"}
        )
        result = layer(X)
    assert result.dtype == "float32"
    np.testing.assert_array_equal(result, expected)  # the very same operations


@pytest.mark.parametrize("make", ["Softmax", "Activation"])
@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_softmax_errs_by_one_ulp_at_most(make, low):
    arguments = ["softmax"] if make == "Activation" else []
    layer = getattr(ours, make)(*arguments, dtype=f"mixed_{low}")
    result = layer(LOGITS)
    expected = softmax(LOGITS)
    error = np.abs(in_float64(result) - expected)
    assert np.all(error <= ulp(expected, low))
    # What this is for: the same layer of Keras errs by more.
    keras_layer = getattr(keras.layers, make)(*arguments, dtype=f"mixed_{low}")
    error = np.abs(in_float64(keras_layer(LOGITS)) - expected)
    assert np.any(error > ulp(expected, low))


@pytest.mark.parametrize("make", ["Softmax", "Activation"])
def test_softmax_in_float32_is_not_rounded_through_float16(make):
    arguments = ["softmax"] if make == "Activation" else []
    layer = getattr(ours, make)(
        *arguments, dtype="mixed_float16", output_dtype="float32"
    )
    result = layer(LOGITS)
    # exp, a sum of 50 and a division in float32: some tens of its roundings.
    np.testing.assert_allclose(result, softmax(LOGITS), rtol=50 * 2.0**-24)
    assert not np.array_equal(result, np.asarray(result).astype("float16"))


def test_layer_normalization_in_float32_is_not_rounded_through_float16():
    # Differences of 1 at a level of 4096, where float16 knows multiples of 4 only:
    # neither input nor output may pass through it.
    x = 4096.0 + np.arange(16, dtype="float32")[None]
    expected = (x - x.mean()) / np.sqrt(x.astype("float64").var() + 1e-3)
    layer = ours.LayerNormalization(dtype="mixed_float16", output_dtype="float32")
    result = layer(x)
    assert result.dtype == "float32"
    # Keras subtracts mean * rsqrt from x * rsqrt: float32's rounding at 4096 / 4.6.
    np.testing.assert_allclose(result, expected, atol=4 * 2.0**-24 * 4096 / 4.6)
    assert not np.array_equal(result, np.asarray(result).astype("float16"))


@pytest.mark.parametrize(
    ("value", "failure"), [(300.0, 0.0), (1e-4, np.inf)], ids=["large", "small"]
)
def test_unit_normalization_where_keras_fails_in_float16(value, failure):
    x = np.full((2, 64), value, "float32")
    by_keras = keras.layers.UnitNormalization(dtype="mixed_float16")(x)
    assert np.all(np.asarray(by_keras) == failure)  # the finding
    result = ours.UnitNormalization(dtype="mixed_float16")(x)
    np.testing.assert_array_equal(result, np.full((2, 64), 0.125, "float16"))
    # In float16 already, as the layers before it leave it: still computed in float32.
    result = ours.UnitNormalization(dtype="mixed_float16")(x.astype("float16"))
    np.testing.assert_array_equal(result, np.full((2, 64), 0.125, "float16"))


def test_unit_normalization_against_float64():
    x = (LOGITS * 1000).astype("float32")
    layer = ours.UnitNormalization(dtype="mixed_float16", output_dtype="float32")
    expected = x / np.linalg.norm(x.astype("float64"), axis=-1, keepdims=True)
    # A sum of 50 squares, a root and a product in float32.
    np.testing.assert_allclose(layer(x), expected, rtol=30 * 2.0**-24)


def test_softmax_mask():
    mask = np.ones((6, 5), bool)
    mask[:, 3:] = False
    mask[2] = [False, True, False, False, False]
    layer = ours.Softmax(dtype="mixed_float16")
    result = np.asarray(layer(X, mask=mask))
    assert result.dtype == "float16"
    assert np.all(result[~mask] == 0)
    expected = np.where(mask, softmax(np.where(mask, X, -1e9)), 0.0)
    np.testing.assert_allclose(result, expected, rtol=2.0**-11, atol=2.0**-24)
    reference = keras.layers.Softmax()(X, mask=mask)
    np.testing.assert_array_equal(result, np.asarray(reference).astype("float16"))


@pytest.mark.parametrize("name", ["activation_softmax", "layer_norm", "unit_norm"])
def test_mask_of_an_embedding_goes_through(name):
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    with keras_mp.policy_scope("mixed_float16"):
        embedded = keras.layers.Embedding(4, 3, mask_zero=True)(ids)
        result = PAIRS[name](ours)(embedded)
    assert getattr(result, "_keras_mask", None) is not None
    np.testing.assert_array_equal(result._keras_mask, ids != 0)


@pytest.mark.parametrize("output_dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_symbolic_dtype_is_the_dtype_at_run_time(policy, output_dtype, pair):
    with keras_mp.policy_scope(policy):
        base = pair(ours)
        layer = type(base).from_config(
            {**base.get_config(), "output_dtype": output_dtype}
        )
        inputs = keras.Input((5,), batch_size=6)
        model = keras.Model(inputs, layer(inputs))
    expected = output_dtype or policy.removeprefix("mixed_")
    assert model.output.dtype == expected
    assert model.output.shape == (6, 5)
    assert model(X).dtype.name == expected
    spec = layer.compute_output_spec(keras.KerasTensor((6, 5), dtype="float16"))
    assert (spec.shape, spec.dtype) == ((6, 5), expected)
    assert layer.compute_dtype == layer.variable_dtype == "float32"


def test_layer_normalization_takes_the_weights_of_keras():
    reference = keras.layers.LayerNormalization()
    reference.build((None, 5))
    weights = [np.arange(5, dtype="float32"), np.linspace(-1, 1, 5, dtype="float32")]
    reference.set_weights(weights)
    layer = ours.LayerNormalization(dtype="mixed_float16", output_dtype="float32")
    layer.build((None, 5))
    layer.set_weights(reference.get_weights())
    np.testing.assert_array_equal(layer(X), reference(X))
    assert [w.name for w in layer.weights] == [w.name for w in reference.weights]
    assert {w.dtype for w in layer.weights} == {"float32"}
    reference.set_weights(layer.get_weights())


def test_weights_file_of_a_model_with_keras_layers_loads(tmp_path):
    def make(module):
        return keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(4, name="dense"),
                module.LayerNormalization(name="norm"),
            ]
        )

    model = make(keras.layers)
    model.get_layer("norm").gamma.assign([1.0, 2.0, 3.0, 4.0])
    model.save_weights(tmp_path / "model.weights.h5")
    with keras_mp.policy_scope("mixed_float16"):
        loaded = make(ours)
    loaded.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("output_dtype", [None, "float32"])
def test_save_and_load(pair, output_dtype, tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        base = pair(ours)
        layer = type(base).from_config(
            {**base.get_config(), "output_dtype": output_dtype}
        )
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5), layer])
    expected = model(X)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[-1]) is type(layer)
    assert loaded.layers[-1].compute_dtype == "float32"
    result = loaded(X)
    assert result.dtype == expected.dtype == (output_dtype or "float16")
    np.testing.assert_array_equal(result, expected)


def test_config_round_trip(pair):
    policy = keras_mp.Policy("mixed_float16", float32=["head"])
    base = pair(ours)
    layer = type(base).from_config(
        {**base.get_config(), "dtype": policy, "output_dtype": "float32"}
    )
    config = layer.get_config()
    before = keras.tree.map_structure(lambda leaf: leaf, config)
    again = type(layer).from_config(config)
    assert config == before
    assert again.get_config() == layer.get_config()
    assert again.outer_policy == policy
    assert again.output_dtype == "float32"
    assert again.compute_dtype == "float32"


def test_default_policy_is_the_global_one():
    layer = ours.Softmax()
    assert layer.outer_policy.name == "float32"
    with keras_mp.policy_scope("mixed_bfloat16"):
        assert ours.Softmax()(X).dtype == "bfloat16"
    assert layer(X).dtype == "float32"


def test_large_float32_input_is_not_rounded_to_float16_before():
    # In float16 both are inf, and the softmax of (inf, inf) is NaN.
    with keras_mp.policy_scope("mixed_float16"):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, ours.Softmax()(inputs))
    result = model(np.array([[70000.0, 70000.0]], "float32"))
    np.testing.assert_array_equal(result, [[0.5, 0.5]])


def test_positional_and_keras_arguments():
    assert ours.Softmax(1).axis == keras.layers.Softmax(1).axis
    assert ours.LayerNormalization(-1, 1e-5, name="norm").epsilon == 1e-5
    assert ours.Activation("relu", name="act").name == "act"
    assert ours.UnitNormalization(axis=-1, trainable=False).trainable is False


@pytest.mark.parametrize("bad", ["int32", "float17", 3, "mixed_float16", "bool"])
def test_output_dtype_must_be_a_float_dtype(bad):
    with pytest.raises(ValueError, match=r"Softmax\(output_dtype=.*float dtype"):
        ours.Softmax(output_dtype=bad)


def test_gradients_flow_and_are_float32():
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(4),
                ours.LayerNormalization(),
                ours.UnitNormalization(),
                keras.layers.Dense(3),
                ours.Softmax(output_dtype="float32"),
            ]
        )
    before = model.get_weights()
    rule = keras_mp.scaling.StaticLossScale(64.0)  # no gradient comes near 1000
    keras_mp.compile(model, "sgd", loss="sparse_categorical_crossentropy", scaling=rule)
    model.fit(X, np.arange(6) % 3, batch_size=3, verbose=0)
    assert model.optimizer.stats()["applied"] == 2
    for after, weight in zip(model.get_weights(), before, strict=True):
        assert np.isfinite(after).all()
        assert np.any(after != weight)
