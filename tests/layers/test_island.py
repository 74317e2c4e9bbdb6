"""The mixin by itself: a user's own layer as a float32 island."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp.layers import Island

X = np.array([[1.0, 2049.0]], "float32")


@keras.saving.register_keras_serializable("test_island")
class Split(Island, keras.layers.Layer):
    """Several outputs of several dtypes, and a weight."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        self.seen = inputs.dtype
        outputs = {
            "scaled": inputs * self.factor,
            "pair": (inputs + 1.0, keras.ops.argmax(inputs)),
            "large": inputs > 2.0,
        }
        return self.handed_back(outputs)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
@pytest.mark.parametrize("output_dtype", [None, "float32", "float16"])
def test_floats_are_handed_back_and_the_rest_left_alone(policy, output_dtype):
    layer = Split(dtype=policy, output_dtype=output_dtype)
    outputs = layer(X)
    expected = output_dtype or policy.removeprefix("mixed_")
    assert outputs["scaled"].dtype == outputs["pair"][0].dtype == expected
    assert outputs["pair"][1].dtype == "int32"
    assert outputs["large"].dtype == "bool"
    assert layer.seen == layer.factor.dtype == layer.compute_dtype == "float32"


def test_symbolic_outputs_have_the_dtypes_of_the_real_ones():
    layer = Split(dtype="mixed_float16")
    symbolic = layer(keras.Input((2,)))
    real = layer(X)
    for a, b in zip(
        keras.tree.flatten(symbolic), keras.tree.flatten(real), strict=True
    ):
        assert a.dtype == keras.backend.standardize_dtype(b.dtype)


@pytest.mark.parametrize(
    "dtype", ["mixed_bfloat16", keras.DTypePolicy("mixed_bfloat16")]
)
def test_outer_policy_is_what_dtype_says(dtype):
    layer = Split(dtype=dtype)
    assert layer.outer_policy.name == "mixed_bfloat16"
    assert layer.dtype_policy.name == "float32"


def test_outer_policy_defaults_to_the_global_one_when_it_was_made():
    policy = keras_mp.Policy("mixed_float16", float32=["head"])
    with keras_mp.policy_scope(policy):
        layer = Split()
    assert layer.outer_policy == policy
    assert layer(X)["scaled"].dtype == "float16"


def test_config_holds_the_outer_policy():
    policy = keras_mp.Policy("mixed_float16", float32=["head"])
    layer = Split(dtype=policy, output_dtype="bfloat16")
    again = Split.from_config(layer.get_config())
    assert again.outer_policy == policy
    assert again.output_dtype == "bfloat16"
    assert again.get_config() == layer.get_config()


def test_save_and_load_of_an_own_island(tmp_path):
    inputs = keras.Input((2,))
    layer = Split(dtype="mixed_float16")
    model = keras.Model(inputs, layer(inputs))
    layer.factor.assign(3.0)
    model.save(tmp_path / "model.keras")
    with keras_mp.policy_scope("mixed_bfloat16"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    outputs = loaded(X)
    assert outputs["scaled"].dtype == "float16"
    np.testing.assert_array_equal(
        outputs["scaled"], np.array([[3.0, 6147.0]]).astype("float16")
    )


@pytest.mark.parametrize("bad", ["int8", "half", 1.5, object()])
def test_output_dtype_that_is_no_float_dtype_is_refused(bad):
    with pytest.raises(ValueError, match=r"Split\(output_dtype=.*None.*'float32'"):
        Split(output_dtype=bad)
