"""`convert` on every kind of model: dtypes, untouched weights, way there and back.

Weights and round trips are compared bitwise: a change of policy computes nothing.
"""

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import Policy, convert, policies, private
from keras_mp.layers import Float32, Softmax

X = np.random.default_rng(0).normal(size=(4, 3, 4)).astype("float32")
IDS = np.array([[5, 7, 9], [7, 7, 5]])
RULED = Policy("mixed_float16", float32=["head"])


@keras.saving.register_keras_serializable("test_conversion")
class Net(keras.Model):
    """A subclassed model whose layers pass no dtype on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(4, name="body")
        self.blocks = [layers.Dense(4, name=f"block_{i}") for i in range(2)]
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        x = self.body(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def sequential():
    return keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.Dense(4, name="body"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(2, name="head"),
        ],
        name="model",
    )


def sequential_without_input():
    return keras.Sequential(
        [layers.Dense(4, name="body"), layers.Dense(2, name="head")], name="model"
    )


def functional():
    inputs = keras.Input((3, 4))
    hidden = layers.Dense(4, activation="relu", name="body")(inputs)
    hidden = layers.Add(name="sum")([hidden, inputs])
    outputs = layers.Dense(2, name="head")(hidden)
    return keras.Model(inputs, outputs, name="model")


def nested():
    inner_inputs = keras.Input((3, 4))
    inner = keras.Model(
        inner_inputs, layers.Dense(4, name="inside")(inner_inputs), name="inner"
    )
    tail = keras.Sequential([layers.Dense(2, name="head")], name="tail")
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, tail(inner(inputs)), name="model")


def subclassed():
    return Net(name="model")


def attention():
    inputs = keras.Input((3, 4))
    hidden = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attend")(inputs, inputs)
    outputs = layers.Dense(2, name="head")(hidden)
    return keras.Model(inputs, outputs, name="model")


def recurrent():
    return keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.Bidirectional(layers.GRU(2, return_sequences=True), name="both"),
            layers.LSTM(3, return_sequences=True, name="lstm"),
            layers.TimeDistributed(layers.Dense(2, name="head"), name="each"),
        ],
        name="model",
    )


MODELS = {
    builder.__name__: builder
    for builder in (
        sequential,
        sequential_without_input,
        functional,
        nested,
        subclassed,
        attention,
        recurrent,
    )
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def computing(model):
    """Return {path: compute dtype} for the layers of ``model`` that compute."""
    return {
        path: layer.compute_dtype
        for layer, path in private.layers.with_paths(model)
        if not isinstance(layer, layers.InputLayer)
    }


def by_policy(model):
    """Return what `computing` does but for the softmax of attention: that has float32.

    `keras_mp.precision_lists` says so, whatever the policy.
    """
    found = computing(model)
    steep = [path for path in found if re.search(r"/softmax(_\d+)?$", path)]
    assert {found.pop(path) for path in steep} <= {"float32"}
    return found


def weights(model):
    return [variable.numpy() for variable in model.variables]


@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_every_layer_computes_under_the_policy(model, low, built):
    if built:
        model(X)
    convert(model, f"mixed_{low}")
    assert model(X).dtype.name == low
    assert set(by_policy(model).values()) == {low}
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_rules_hold(model, built):
    if built:
        model(X)
    convert(model, RULED)
    assert model.predict(X, verbose=0).dtype == "float32"
    found = by_policy(model)
    low = {path for path, dtype in found.items() if dtype == "float16"}
    high = {path for path, dtype in found.items() if dtype == "float32"}
    # TimeDistributed computes by its layer, so it is where that is.
    assert {path.split("/")[-1] for path in high} <= {"head", "each"}
    assert low == set(found) - high


def test_weights_are_kept_as_they_are(model):
    model(X)
    variables, before = model.variables, weights(model)
    convert(model, RULED)
    model(X)
    assert len(model.variables) == len(variables)
    assert all(a is b for a, b in zip(model.variables, variables, strict=True))
    for after, value in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(after, value)


@pytest.mark.parametrize("way", ["call", "predict"])
def test_way_there_and_back_predicts_the_same(model, way):
    def predict():
        return model(X) if way == "call" else model.predict(X, verbose=0)

    before = np.asarray(predict())
    convert(model, "mixed_bfloat16")
    low = np.asarray(predict())
    assert low.dtype.name == ("bfloat16" if way == "call" else "float32")
    convert(model, "float32")
    after = np.asarray(predict())
    assert before.dtype == after.dtype == "float32"
    np.testing.assert_array_equal(after, before)
    assert np.any(low.astype("float32") != before)


def test_sequential_built_in_low_precision_no_longer_rounds_its_inputs():
    """Keras gives the input of a built Sequential the compute dtype it had then."""
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [layers.Dense(1, use_bias=False, kernel_initializer="ones")]
        )
        model(np.ones((1, 2), "float32"))
    convert(model, "float32")
    result = model(np.array([[1e5, 2049.0]], "float32"))
    np.testing.assert_array_equal(result, [[102049.0]])


def test_low_precision_predicts_nearly_the_same(model):
    expected = model(X)
    convert(model, "mixed_float16")
    # Up to four layers of sums of four: about 20 roundings of 2**-11 to values < 4.
    np.testing.assert_allclose(model(X), expected, atol=0.02)


def test_saved_model_reloads_with_the_same_dtypes(model, tmp_path):
    model(X)
    convert(model, RULED)
    expected, predictions = computing(model), np.asarray(model(X))
    model.save(tmp_path / "model.keras")
    keras.backend.clear_session()  # so that Keras numbers nameless layers alike
    # A subclassed model's own code makes its layers, under the policy of the day.
    with keras_mp.policy_scope(RULED if type(model) is Net else "float32"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert computing_inside(loaded) == computing_inside(model)
    assert set(computing(loaded)) == set(expected)
    np.testing.assert_array_equal(loaded(X), predictions)


def computing_inside(model):
    """The same without models: those only pass on what they are given."""
    return {
        path: layer.compute_dtype
        for layer, path in private.layers.with_paths(model)
        if not isinstance(layer, layers.InputLayer | keras.Model)
    }


def test_paths_are_the_same_before_and_after_saving(model, tmp_path):
    model(X)
    before = [path for _, path in private.layers.with_paths(model)]
    assert before[0] == "model"
    assert len(before) == len(set(before))
    model.save(tmp_path / "model.keras")
    keras.backend.clear_session()  # so that Keras numbers nameless layers alike
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [path for _, path in private.layers.with_paths(loaded)] == before


@pytest.mark.parametrize("name", ["sequential_without_input", "subclassed"])
def test_paths_are_the_same_before_and_after_building(name):
    model = MODELS[name]()
    before = [path for _, path in private.layers.with_paths(model)]
    model(X)
    after = [path for layer, path in private.layers.with_paths(model)]
    assert [path for path in after if "input" not in path] == before
    assert "model/head" in before


def test_path_rules_hold_in_functional_models():
    model = nested()
    convert(model, Policy("mixed_float16", float32=["tail/head"]))
    assert computing_inside(model) == {
        "model/inner/inside": "float16",
        "model/tail/head": "float32",
    }
    convert(model, Policy("mixed_float16", float32=["inner"]))
    assert computing_inside(model) == {
        "model/inner/inside": "float32",
        "model/tail/head": "float16",
    }


def test_attention_sublayers_follow():
    """Keras's own setter leaves the sublayers of built attention in float32."""
    layer = layers.MultiHeadAttention(2, 3)
    layer(X, X)
    layer.dtype_policy = "mixed_float16"
    assert layer(X, X).dtype == "float32"  # the finding
    convert(layer, "mixed_float16")
    assert layer(X, X).dtype == "float16"
    assert set(by_policy(layer).values()) == {"float16"}


@pytest.mark.parametrize("rule", ["gru", layers.GRU])
def test_rules_cover_cells_and_wrapped_layers(rule):
    layer = layers.Bidirectional(
        layers.GRU(2, name="gru"), backward_layer=layers.LSTM(2, go_backwards=True)
    )
    layer(X)
    convert(layer, Policy("mixed_float16", float32=[rule, "forward_gru"]))
    assert layer.forward_layer.compute_dtype == "float32"
    assert layer.forward_layer.cell.compute_dtype == "float32"
    assert layer.backward_layer.compute_dtype == "float16"
    assert layer.backward_layer.cell.compute_dtype == "float16"


def test_islands_stay_islands_and_hand_back_the_new_dtype():
    inputs = keras.Input((3, 4))
    wrapped = Float32(layers.Dense(4, name="wrapped"))
    fixed = Float32(layers.Dense(4), output_dtype="float32")
    softmax = Softmax()
    model = keras.Model(
        inputs, [wrapped(inputs), softmax(inputs), fixed(inputs)], name="model"
    )
    for low in ("float16", "bfloat16", "float32"):
        policy = low if low == "float32" else f"mixed_{low}"
        convert(model, policy)
        islands = (wrapped, wrapped.layer, softmax, fixed, fixed.layer)
        assert {layer.compute_dtype for layer in islands} == {"float32"}
        assert [y.dtype.name for y in model(X)] == [low, low, "float32"]
    convert(model, Policy("mixed_float16", float32=[layers.Softmax]))
    assert [y.dtype.name for y in model(X)] == ["float16", "float32", "float32"]


def test_lookup_and_integer_layers_are_left_alone():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int64"),
            layers.IntegerLookup(vocabulary=[5, 7, 9]),
            layers.Embedding(6, 4, name="table"),
        ]
    )
    lookup, table = model.layers
    before = lookup.compute_dtype, lookup.dtype_policy.name
    expected = np.asarray(model(IDS))
    convert(model, "mixed_float16")
    assert (lookup.compute_dtype, lookup.dtype_policy.name) == before
    np.testing.assert_array_equal(lookup(IDS), [[1, 2, 3], [2, 2, 1]])
    assert model(IDS).dtype == table.compute_dtype == "float16"
    np.testing.assert_array_equal(model(IDS), expected.astype("float16"))


def test_hashing_is_left_alone():
    layer = layers.Hashing(1000)
    ids = np.arange(20)
    expected = np.asarray(layer(ids))
    convert(layer, "mixed_float16")
    assert layer.compute_dtype == "int64"
    np.testing.assert_array_equal(layer(ids), expected)


def test_large_integers_are_not_cast():
    model = keras.Sequential(
        [keras.Input((1,), dtype="int32"), layers.Embedding(3000, 2)]
    )
    expected = np.asarray(model(np.array([[2049]])))
    convert(model, "mixed_float16")  # 2049 is no float16
    np.testing.assert_array_equal(model(np.array([[2049]])), expected.astype("float16"))


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers_are_left_alone():
    model = sequential()
    model.get_layer("head").quantize("int8")
    policy = model.get_layer("head").dtype_policy
    convert(model.get_layer("head"), "float32")
    assert model.get_layer("head").dtype_policy is policy
    assert model.get_layer("head").quantization_mode == "int8"


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_float16", "float32", RULED])
@pytest.mark.parametrize("pure", ["float16", "bfloat16"])
def test_variables_of_a_pure_model_become_float32(pure, policy, tmp_path):
    with keras_mp.policy_scope(pure):
        model = functional()
    model.compile("sgd", "mse")
    y = np.zeros((4, 3, 2), "float32")
    model.fit(X, y, verbose=0)
    model.save(tmp_path / "pure.keras")
    variables = model.variables
    before = [keras.ops.cast(v, "float32") for v in model.trainable_variables]
    expected = keras.ops.cast(model(X), "float32")
    for converted in (model, keras.saving.load_model(tmp_path / "pure.keras")):
        convert(converted, policy)
        assert {v.dtype for v in converted.trainable_variables} == {"float32"}
        for after, value in zip(converted.trainable_variables, before, strict=True):
            np.testing.assert_array_equal(after, value)
        # Products in 16 bits and in float32 of the same weights.
        np.testing.assert_allclose(
            keras.ops.cast(converted(X), "float32"), expected, atol=0.05
        )
        with pytest.raises(ValueError, match="compile"):
            converted.fit(X, y, verbose=0)
        keras_mp.compile(converted, "adam", "mse")
        converted.fit(X, y, verbose=0)
        converted.save(tmp_path / "again.keras")
        loaded = keras_mp.load_model(tmp_path / "again.keras")
        assert {v.dtype for v in loaded.trainable_variables} == {"float32"}
        np.testing.assert_array_equal(loaded(X), converted(X))
    assert all(a is b for a, b in zip(model.variables, variables, strict=True))


def test_built_model_is_refused_under_a_pure_policy():
    model = functional()
    with pytest.raises(ValueError, match="bfloat16.*body/kernel.*float32"):
        convert(model, "bfloat16")
    assert set(computing(model).values()) == {"float32"}


def test_unbuilt_model_takes_a_pure_policy():
    model = sequential_without_input()
    convert(model, "float16")
    assert model(X).dtype == "float16"
    assert {v.dtype for v in model.variables} == {"float16"}


def test_variables_under_a_rule_become_float32_in_a_pure_model():
    with keras_mp.policy_scope("float16"):
        model = functional()
    convert(model, Policy("float16", float32=["head"]))
    dtypes = {v.path.split("/")[0]: v.dtype for v in model.variables}
    assert dtypes["head"] == "float32" and dtypes["body"] == "float16"
    assert model(X).dtype == "float32"


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match="needs a Keras model or layer. Got 3"):
        convert(3, "mixed_float16")


def test_float32_variables_of_islands_and_rules_fit_a_pure_policy():
    policy = Policy("float16", float32=["head"])
    with keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((3, 4)),
                layers.Dense(4, name="body"),
                keras_mp.layers.LayerNormalization(),
                layers.Dense(2, name="head"),
            ]
        )
    convert(model, policy)
    dtypes = [layer.compute_dtype for layer in model.layers]
    assert dtypes == ["float16", "float32", "float32"]


@pytest.mark.parametrize("policy", ["mixed_float17", 3])
def test_unknown_policy_is_refused(policy):
    model = functional()
    with pytest.raises(ValueError, match="is no dtype policy"):
        convert(model, policy)
    assert set(computing(model).values()) == {"float32"}


def test_policy_may_be_a_keras_policy_or_auto(monkeypatch):
    recommendation = keras_mp.hardware.Recommendation("mixed_float16", "Because.")
    monkeypatch.setattr(keras_mp.hardware, "recommend", lambda: recommendation)
    model = functional()
    convert(model, keras.DTypePolicy("mixed_bfloat16"))
    assert model(X).dtype == "bfloat16"
    convert(model, "auto")
    assert model(X).dtype == "float16"


def test_applying_leaves_the_global_policy_and_other_layers_alone():
    other = layers.Dense(2)
    convert(functional(), "mixed_float16")
    assert keras.config.dtype_policy().name == "float32"
    assert other.compute_dtype == layers.Dense(2).compute_dtype == "float32"


def test_layers_created_later_obey_the_policy_of_their_container():
    layer = layers.MultiHeadAttention(2, 3, name="attend")
    convert(layer, Policy("mixed_float16", float32=["query"]))
    layer(X, X)  # makes its sublayers now
    found = computing(layer)
    assert found["attend/query"] == "float32"
    assert found["attend/key"] == "float16"


def shared_model():
    dense = layers.Dense(4, name="shared")
    first = keras.Sequential([dense], name="first")
    second = keras.Sequential([dense], name="second")
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, second(first(inputs)), name="model"), dense


def test_shared_layers_come_once_per_place():
    model, dense = shared_model()
    places = [
        path for layer, path in private.layers.with_paths(model) if layer is dense
    ]
    assert places == ["model/first/shared", "model/second/shared"]
    before = dense.kernel.numpy()
    convert(model, "mixed_float16")
    assert dense.compute_dtype == model(X).dtype.name == "float16"
    np.testing.assert_array_equal(dense.kernel, before)


@pytest.mark.parametrize("rule", ["first/shared", "second/shared", "first", "shared"])
def test_shared_layer_is_in_float32_if_a_rule_matches_it_anywhere(rule):
    model, dense = shared_model()
    convert(model, Policy("mixed_float16", float32=[rule]))
    assert dense.compute_dtype == "float32"


def test_unmatched_rules():
    model = nested()
    rules = ["head", "haed", "inner/inside", "inner/head", layers.Dense, layers.Softmax]
    convert(model, Policy("mixed_float16", float32=rules))
    assert list(policies.unmatched_rules(model)) == [
        ("haed", "Did you mean 'head'?"),
        ("inner/head", "Did you mean 'head'?"),
        ("Softmax", f"Its layers are: {', '.join(names_in(model))}."),
    ]
    convert(model, Policy("mixed_float16"))
    assert list(policies.unmatched_rules(model)) == []


def names_in(model):
    return [layer.name for layer in private.layers.walk(model)]


def test_weightless_layers_obey_rules_on_their_path_once_the_model_is_made():
    policy = Policy("mixed_float16", float32=["model/soft"])
    with keras_mp.policy_scope(policy):
        inputs = keras.Input((3, 4))
        hidden = layers.Activation("softmax", name="soft")(inputs)
        model = keras.Model(
            inputs, layers.Activation("relu", name="other")(hidden), name="model"
        )
    assert model.get_layer("soft").compute_dtype == "float32"
    assert model.get_layer("other").compute_dtype == "float16"
    assert model.get_layer("other").dtype_policy == policy


def test_resolve_rules_leaves_layers_without_rules_alone():
    model = functional()
    model.get_layer("body").dtype_policy = "mixed_bfloat16"
    before = computing(model)
    policies.apply_rules(model)
    assert computing(model) == before


@pytest.mark.parametrize("name", ["sequential", "attention"])
def test_training_two_steps_afterwards(name):
    model = MODELS[name]()
    model(X)
    before = [w.numpy() for w in model.trainable_variables]
    rule = keras_mp.scaling.StaticLossScale(64.0)  # no gradient comes near 1000
    keras_mp.compile(model, "sgd", loss="mse", policy=RULED, scaling=rule)
    model.fit(X, np.ones((4, 3, 2), "float32"), batch_size=2, verbose=0)
    assert model.optimizer.stats()["applied"] == 2
    assert all(np.isfinite(w).all() for w in weights(model))
    moved = [
        np.any(w.numpy() != b)
        for w, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert any(moved)


def test_normalization_of_large_data_stays_in_float32(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32") * 1e3
    normalization = keras.layers.Normalization()
    normalization.adapt(x)  # a variance beyond float16
    model = keras.Sequential([keras.Input((3,)), normalization])
    expected = model.predict(x, verbose=0)
    convert(model, "mixed_float16")
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


def test_normalization_adapted_in_float16_is_right_in_float32():
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32") * 1e3
    reference = keras.layers.Normalization()
    reference.adapt(x)
    low = keras.layers.Normalization(dtype="mixed_float16")
    low.adapt(x)
    model = keras.Sequential([keras.Input((3,)), low])
    convert(model, "float32")
    # Both adapt in float32; two orders of summing.
    np.testing.assert_allclose(model(x), reference(x), rtol=1e-3, atol=1e-3)


def test_normalization_obeys_a_policy_wider_than_float32():
    normalization = keras.layers.Normalization()
    normalization.adapt(np.array([[0.0], [2.0]]))  # mean 1, variance 1
    model = keras.Sequential([keras.Input((1,)), normalization])
    keras_mp.convert(model, "float64")
    assert normalization.compute_dtype == normalization.mean.dtype == "float64"
    fine = 2.0**-40  # which float32 loses beside 1
    result = normalization(keras.ops.array([[1 + fine]], "float64"))
    assert result.numpy().item() == fine


class Masked(keras.layers.Layer):
    """Has a mask in float64, as some packages make them, beside its weights."""

    def __init__(self, trainable=False, **kwargs):
        super().__init__(**kwargs)
        self.of_mask = trainable

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")
        self.mask = self.add_weight(
            shape=shape[-1:],
            initializer="ones",
            dtype="float64",
            trainable=self.of_mask,
        )

    def call(self, x):
        return x * self.scale * self.mask


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_a_variable_that_its_layer_made_wide_is_left_alone(policy, trainable):
    model = keras.Sequential([keras.Input((4,)), Masked(trainable)])
    mask = model.layers[0].mask
    keras_mp.convert(model, policy)
    assert mask.dtype == "float64" and model.layers[0].scale.dtype == "float32"
    keras_mp.compile(model, "sgd", "mse")
    losses = [model.train_on_batch(np.ones((2, 4)), np.zeros((2, 4))) for _ in "ab"]
    assert losses[1] < losses[0]


def test_a_model_made_in_float64_is_still_refused():
    with keras_mp.policy_scope("float64"):
        model = keras.Sequential([keras.Input((4,)), Masked()])
    with pytest.raises(ValueError, match="variable .float64.*would be rounded"):
        keras_mp.convert(model, "mixed_float16")
    assert model.layers[0].compute_dtype == "float64"
