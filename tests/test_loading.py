"""`load_model`: what was saved, under the policy that was saved, and protected."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import POISON, X, Y, assert_same_state, stateful_model

import keras_mp
from keras_mp import loading, scaling


@pytest.mark.long
@pytest.mark.parametrize("loaded_under", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("load", [keras_mp.load_model, keras.saving.load_model])
def test_model_file_resumes_as_if_never_stopped(load, loaded_under, tmp_path):
    policy = keras_mp.Policy("mixed_float16", float32=["dense_1"])
    model = stateful_model()
    model.layers[2].rate = 0.0  # Keras saves no random seeds
    rule = scaling.DynamicLossScale(initial_scale=64.0, growth_interval=3)
    keras_mp.compile(model, "adam", "binary_crossentropy", policy=policy, scaling=rule)
    model.fit(POISON, Y, batch_size=8, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    with keras_mp.policy_scope(loaded_under):
        loaded = load(tmp_path / "model.keras")
    assert loaded.optimizer.scaling == rule
    assert loaded.optimizer.stats() == model.optimizer.stats()
    assert [x.compute_dtype for x in loaded.layers] == [
        x.compute_dtype for x in model.layers
    ]
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    loaded.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    # The same arithmetic in two graphs, a few steps of Adam apart.
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_loaded_model_is_protected(tmp_path):
    model = stateful_model()
    keras_mp.compile(model, "adam", "binary_crossentropy", policy="mixed_float16")
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    before = {variable.path: variable.numpy() for variable in loaded.variables}
    skipped = loaded.optimizer.stats()["skipped"]
    loaded.train_on_batch(POISON[8:16], Y[8:16])
    assert loaded.optimizer.stats()["skipped"] == skipped + 1
    after = {variable.path: variable.numpy() for variable in loaded.variables}
    assert_same_state(before, after)


@keras.saving.register_keras_serializable("test_loading")
class Mixing(keras.layers.Layer):
    """Its ones are in float32."""

    def call(self, x):
        return x * tf.ones(tf.shape(x))


@pytest.mark.parametrize("rules", [[], ["dense"]])
@pytest.mark.parametrize("way", ["set_policy", "convert"])
def test_code_that_fails_in_16_bits_can_be_loaded(way, rules, tmp_path):
    policy = keras_mp.Policy("mixed_float16", float32=rules)
    with (
        keras_mp.policy_scope(policy if way == "set_policy" else "float32"),
        pytest.warns(UserWarning, match="float32 island"),
    ):
        inputs = keras.Input((4,))
        head = keras.layers.Dense(1, "sigmoid", name="dense")
        model = keras.Model(inputs, head(Mixing()(inputs)))
        keras_mp.compile(model, "adam", "binary_crossentropy", policy=policy)
        model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="float32 island"):
        loaded = keras_mp.load_model(tmp_path / "model.keras")
    expected = model.predict(X, verbose=0)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)


@pytest.mark.long
@pytest.mark.parametrize("explicit", [True, False])
def test_model_saved_with_keras_scaler_goes_on_with_ours(explicit, tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        model = stateful_model()
        optimizer = keras.optimizers.Adam(0.125)
        if explicit:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=64.0, dynamic_growth_steps=5
            )
        model.compile(optimizer, "binary_crossentropy", metrics=["mae"])
        model.fit(X, Y, batch_size=8, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras_mp.LossScaleOptimizer
    stats = loaded.optimizer.stats()
    assert stats["scale"] == float(model.optimizer.dynamic_scale)
    for a, b in zip(
        model.optimizer.inner_optimizer.variables,
        loaded.optimizer.inner_optimizer.variables,
        strict=True,
    ):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    logs = loaded.fit(POISON, Y, batch_size=8, verbose=0).history
    assert set(logs) == {"loss", "mae"} and np.isfinite(logs["loss"]).all()
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    assert again.optimizer.stats() == loaded.optimizer.stats()


def test_loading_reports_rules_that_no_longer_match(tmp_path):
    with keras_mp.policy_scope(keras_mp.Policy("mixed_float16", ["attn/softmax"])):
        inputs = keras.Input((3, 4))
        attention = keras.layers.MultiHeadAttention(1, 4, name="attn")
        model = keras.Model(inputs, attention(inputs, inputs))
    model.save(tmp_path / "model.keras")  # the loaded softmax is called softmax_1
    with pytest.warns(UserWarning, match="'attn/softmax' matches no layer"):
        keras_mp.load_model(tmp_path / "model.keras")


# Layers that a class makes for itself, which the file does not name.


@keras.saving.register_keras_serializable("test_loading")
class Block(keras.layers.Layer):
    """Makes its sublayers in __init__, as layers on keras.io do."""

    def __init__(self, units=16, **kwargs):
        super().__init__(**kwargs)
        self.units, self.dense = units, keras.layers.Dense(units)
        self.head = keras.layers.Dense(units, name="head")

    def build(self, shape):
        self.dense.build(shape)
        self.head.build(shape)

    def call(self, x):
        return self.head(keras.ops.relu(self.dense(x)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_loading")
class Late(Block):
    """Makes one more sublayer as it is built."""

    def build(self, shape):
        super().build(shape)
        self.late = keras.layers.Dense(self.units)
        self.late.build(shape)

    def call(self, x):
        return self.late(super().call(x))


@keras.saving.register_keras_serializable("test_loading")
class Whole(keras.Model):
    """A model of a class of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block, self.out = Late(), keras.layers.Dense(3)

    def call(self, x):
        return self.out(self.block(x))


@keras.saving.register_keras_serializable("test_loading")
class Task(keras.Model):
    """A Functional model of a class of its own."""

    def __init__(self, dtype=None, **kwargs):
        inputs = keras.Input((16,))
        block = Block(name="block", dtype=dtype)
        super().__init__(inputs, block(inputs), **kwargs)
        if dtype is not None:
            self.dtype_policy = dtype

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype_policy}


def sequential():
    return keras.Sequential([keras.Input((16,)), Block(), keras.layers.Dense(3)])


def functional():
    inputs = keras.Input((16,))
    x = keras.layers.LayerNormalization()(Late()(inputs))
    return keras.Model(inputs, keras.layers.Softmax()(sequential()(x)))


def of_blocks():
    inputs = keras.Input((16,))
    return keras.Model(inputs, Block(name="last")(Block(name="first")(inputs)))


ROWS = np.random.default_rng(0).normal(size=(4, 16)).astype("float32")


def dtypes(model):
    """Return the compute dtype of each layer that computes, in order."""
    return [
        layer.compute_dtype
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def made(make, how, policy):
    """Return a model under ``policy``, which it was made or put under."""
    if how == "set_policy":
        with keras_mp.policy_scope(policy):
            model = make()
            model(ROWS)
    else:
        model = make()
        model(ROWS)
        keras_mp.convert(model, policy)
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    return model


@pytest.mark.filterwarnings("ignore:`build..` was called on layer")
@pytest.mark.parametrize("make", [sequential, functional, of_blocks, Whole, Task])
@pytest.mark.parametrize("how", ["set_policy", "convert"])
@pytest.mark.parametrize(
    "policy",
    [
        "mixed_float16",
        "mixed_bfloat16",
        "float32",
        keras_mp.Policy("mixed_float16", float32=["head"]),
        keras_mp.Policy("mixed_bfloat16", float32=["block"], allow=[Late]),
        keras_mp.Policy("mixed_float16", float32=["last"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Policy rule")
def test_layers_that_are_not_in_the_file_are_as_they_were(make, how, policy, tmp_path):
    model = made(make, how, policy)
    model.save(tmp_path / "model.keras")
    other = "mixed_float16" if policy == "float32" else "float32"
    with keras_mp.policy_scope(other) as around:
        loaded = keras_mp.load_model(tmp_path / "model.keras", compile=False)
        assert keras.config.dtype_policy() is around
    assert dtypes(loaded) == dtypes(model)
    np.testing.assert_array_equal(loaded(ROWS), model(ROWS))


def test_one_layer_under_another_policy_does_not_decide(tmp_path):
    inputs = keras.Input((16,))
    x = Block()(keras.layers.Dense(16, dtype="mixed_bfloat16")(inputs))
    model = keras.Model(inputs, Block(dtype="mixed_bfloat16")(Block()(x)))
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert dtypes(loaded) == dtypes(model)


def test_one_layer_in_float32_does_not_decide(tmp_path):
    with keras_mp.policy_scope("mixed_bfloat16"):
        inputs = keras.Input((16,))
        x = Block(dtype="float32")(Block()(inputs))
        model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert dtypes(loaded) == dtypes(model)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_folder_and_a_legacy_file_load_too(policy, tmp_path):
    model = made(sequential, "convert", policy)
    model.save(tmp_path / "folder", zipped=False)
    loaded = keras_mp.load_model(tmp_path / "folder")
    assert dtypes(loaded) == dtypes(model)
    dense = keras.Sequential([keras.Input((16,)), keras.layers.Dense(3)])
    dense.save(tmp_path / "model.h5")
    keras_mp.load_model(tmp_path / "model.h5", compile=False)


def test_custom_objects_reach_the_rules_of_a_saved_policy(tmp_path):
    class Unregistered(keras.layers.Dense):
        pass

    policy = keras_mp.Policy("mixed_float16", float32=[Unregistered])
    with keras_mp.policy_scope(policy):
        model = keras.Sequential([keras.Input((16,)), Unregistered(4), Block(4)])
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(
        tmp_path / "model.keras", custom_objects={"Unregistered": Unregistered}
    )
    assert dtypes(loaded) == dtypes(model)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_of_a_file_is_ours(zipped, tmp_path):
    def saved(name, model):
        model.save(tmp_path / name, zipped=zipped)
        return loading.holds_ours(tmp_path / name)

    end = ".keras" if zipped else ""
    with keras_mp.policy_scope("mixed_bfloat16"):
        plain = sequential()
        island = keras.Sequential([keras.Input((4,)), keras_mp.layers.Softmax()])
    assert not saved(f"plain{end}", plain)
    assert saved(f"island{end}", island)
    with keras_mp.policy_scope(keras_mp.Policy("mixed_bfloat16", ["head"])):
        assert saved(f"rules{end}", sequential())
    keras_mp.compile(plain, "sgd", "mse", policy="mixed_float16")
    assert saved(f"optimizer{end}", plain)
    assert not loading.holds_ours(tmp_path / "nothing.keras")


# Quantized models.


def attention_model():
    inputs = keras.Input((3, 16))
    attend = keras.layers.MultiHeadAttention(2, 8, name="attend")
    x = keras.layers.Dense(16, name="body")(attend(inputs, inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


@pytest.mark.parametrize("how", ["set_policy", "convert"])
@pytest.mark.parametrize("mode", ["int8", "float8"])
@pytest.mark.parametrize("rules", [{"float32": ["head"]}, {"allow": ["attend"]}])
@pytest.mark.parametrize("load", [keras_mp.load_model, keras.saving.load_model])
@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_under_rules_is_loaded(
    how, mode, rules, load, tmp_path, monkeypatch
):
    # Keras looks for garbage as it quantizes each layer, half a second each time.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    policy = keras_mp.Policy("mixed_bfloat16", **rules)
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype("float32")
    if how == "set_policy":
        with keras_mp.policy_scope(policy):
            model = attention_model()
    else:
        model = attention_model()
        keras_mp.convert(model, policy)
    model.quantize(mode)
    before = model(x)
    model.save(tmp_path / "model.keras")
    loaded = load(tmp_path / "model.keras")
    modes = [layer.quantization_mode for layer in model._flatten_layers()]
    assert modes.count(mode) == 6  # four of attention, and two
    assert modes == [layer.quantization_mode for layer in loaded._flatten_layers()]
    if load is keras_mp.load_model:  # which puts the guards back
        np.testing.assert_allclose(
            np.asarray(loaded(x), "float32"),
            np.asarray(before, "float32"),
            rtol=2**-7,  # bfloat16 rounds by 2**-8, in the output and before it
            atol=2**-7,
        )


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_a_map_of_policies_of_keras_is_left_to_keras(tmp_path):
    """As KerasHub writes one for a quantized backbone, without a default."""
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(3, name="a")])
    policy = keras.dtype_policies.DTypePolicyMap()
    policy["a"] = keras.dtype_policies.get("int8_from_float32")
    model.dtype_policy = policy
    model.quantize("int8")
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].quantization_mode == "int8"
    np.testing.assert_array_equal(loaded(ROWS), model(ROWS))
