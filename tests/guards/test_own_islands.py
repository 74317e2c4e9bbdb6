"""Code of the user's own that fails in 16 bits computes in float32, and says so."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mp
from keras_mp import guards, policy_scope
from keras_mp.placement import placement_report

X = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)


class Noisy(layers.Layer):
    """Its noise is in float32, as in many sampling layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(x) * tf.ones(tf.shape(x))


class Constant(layers.Layer):
    def call(self, x):
        return tf.stack([x, tf.zeros(tf.shape(x))])[0]


class Around(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x) + x


class Broken(layers.Layer):
    def call(self, x):
        raise ValueError("the data is of no use")


class Strict16(layers.Layer):
    """Fails whatever its inputs are in."""

    def call(self, x):
        return tf.cast(x, "float16") * tf.cast(x, "float32")


def model_of(layer):
    return keras.Sequential([keras.Input((4,)), layer, layers.Dense(2)])


def fit(model, **options):
    keras_mp.compile(model, "sgd", "mse", **options)
    return model.fit(X, np.ones((8, 2)), verbose=0).history["loss"][0]


@pytest.mark.parametrize("low", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("make", [Noisy, Constant, lambda: Around(Noisy(name="noisy"))])
@pytest.mark.parametrize("way", ["set_policy", "convert"])
def test_mixed_dtypes_train_with_a_warning(make, low, way):
    with policy_scope(low if way == "set_policy" else "float32"):
        with pytest.warns(UserWarning, match="float32 island") as caught:
            model = model_of(make())
            loss = fit(model, policy=low)
    assert np.isfinite(loss)
    (message,) = {str(w.message) for w in caught if "island" in str(w.message)}
    assert re.search(r"operation \w+ at .*test_own_islands.py:\d+", message)


def test_the_smallest_layer_becomes_an_island_and_is_reported():
    noisy = Noisy(name="noisy")
    model = model_of(Around(noisy, name="around"))
    with pytest.warns(UserWarning, match="Layer 'noisy' .Noisy. failed in float16"):
        fit(model, policy="mixed_float16")
    assert guards.island_reason(noisy) and not guards.island_reason(model.layers[0])
    assert noisy.dense.compute_dtype == "float16"  # its products stay in 16 bits
    rows = {row.path.split("/")[-1]: row for row in placement_report(model)}
    assert rows["noisy"].compute_dtype == "float32"
    assert "island" in rows["noisy"].reason and rows["around"].reason == "the policy"
    (finding,) = (f for f in keras_mp.lint(model) if f.rule == "island")
    assert (finding.severity, finding.layer) == (
        "note",
        f"{model.name}/around/noisy",
    )


def test_an_island_hands_back_16_bits_and_is_as_exact_as_float32():
    layer = Noisy()
    expected = layer(X)
    keras_mp.convert(layer, "mixed_bfloat16")
    with pytest.warns(UserWarning, match="float32 island"):
        result = layer(X)
    assert result.dtype == tf.bfloat16
    # Inputs, weights and the product of the layer inside are rounded to 8 bits.
    np.testing.assert_allclose(tf.cast(result, "float32"), expected, atol=2**-7)
    assert layer(X).dtype == tf.bfloat16  # and warns no more


def test_strict_keeps_the_error():
    policy = keras_mp.Policy("mixed_float16", strict=True)
    with pytest.raises(TypeError, match="does not match type"):
        fit(model_of(Noisy()), policy=policy)
    with policy_scope(policy):
        made = Noisy()
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
        made(X)


def test_other_errors_are_raised_as_they_are():
    with policy_scope("mixed_float16"):
        broken, mixing = Broken(), Strict16()
    with pytest.raises(ValueError, match="the data is of no use"):
        broken(X)
    with pytest.raises(tf.errors.InvalidArgumentError, match="half"):
        mixing(X)
    assert not guards.island_reason(broken) and not guards.island_reason(mixing)


@pytest.mark.parametrize("on, off", [(True, False), ("training", "inference")])
def test_code_that_fails_only_as_it_trains_predicts_in_16_bits(on, off):
    class Balanced(layers.Layer):
        def call(self, x, training=None, stage=None):
            self.seen = x.dtype
            trains = on in (training, stage)
            return x * tf.ones(tf.shape(x)) if trains else 2 * x

    name = "training" if on is True else "stage"
    with policy_scope("mixed_float16"):
        layer = Balanced()
    with pytest.warns(UserWarning, match="float32 island"):
        layer(X, **{name: on})
    assert layer.seen == tf.float32
    layer(X, **{name: off})
    assert layer.seen == tf.float16  # as in a loaded layer, which never trained


def test_layers_that_work_are_left_alone():
    class Fine(layers.Layer):
        def call(self, x):
            self.seen = x.dtype
            return x * tf.cast(2.0, x.dtype)

    with policy_scope("mixed_float16"):
        layer = Fine()
        assert layer(X).dtype == layer.seen == tf.float16
    assert not guards.island_reason(layer)


def test_a_call_that_fails_half_way_leaves_no_trace():
    class Counts(layers.Layer):
        def build(self, shape):
            self.norm = layers.BatchNormalization(momentum=0.5)
            self.norm.build(shape)

        def call(self, x, training=None):
            y = self.norm(x, training=training)
            self.add_loss(keras.ops.mean(y))
            return y * tf.ones(tf.shape(x))

    layer, plain = Counts(), Counts()
    keras_mp.convert(layer, "mixed_float16")
    for each in (layer, plain):
        each.build(X.shape)
    keras_mp.convert(layer, "mixed_float16")

    @tf.function
    def run(layer):
        return layer(X + 1, training=True)

    with pytest.warns(UserWarning, match="float32 island"):
        run(layer)
    run(plain)
    assert len(layer.losses) == len(plain.losses) == 1
    np.testing.assert_allclose(
        layer.norm.moving_mean, plain.norm.moving_mean, rtol=2**-10
    )


def test_policies_are_saved_with_their_strictness():
    policy = keras_mp.Policy("mixed_float16", strict=True)
    assert keras_mp.Policy.from_config(policy.get_config()) == policy
    assert policy != keras_mp.Policy("mixed_float16")
    assert repr(policy) == "<Policy 'mixed_float16', float32=[], strict=True>"
