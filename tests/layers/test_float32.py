"""`Float32` around every kind of layer, in every kind of model."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_mp
from keras_mp.layers import Float32, Softmax

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 5)).astype("float32")
IDS = np.array([[1, 2, 0], [3, 0, 0], [1, 1, 1], [2, 3, 0]])
MASK = IDS != 0

# Beyond float16's largest, between two of its numbers, and below its smallest.
HARD = np.array([[1e5, 2049.0, 1e-9]], "float32")


@pytest.fixture(autouse=True)
def low_precision(fresh_keras):
    keras.config.set_dtype_policy("mixed_float16")


@keras.saving.register_keras_serializable("test_float32")
class Net(keras.Model):
    """A subclassed model; it holds its float32 layer as Keras holds any other."""

    def __init__(self, wrapped, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(4, name="body", dtype=self.dtype_policy)
        self.wrapped = wrapped

    def call(self, x, training=None):
        return self.wrapped(self.body(x), training=training)

    def get_config(self):
        wrapped = keras.saving.serialize_keras_object(self.wrapped)
        return {**super().get_config(), "wrapped": wrapped}

    @classmethod
    def from_config(cls, config):
        wrapped = keras.saving.deserialize_keras_object(config["wrapped"])
        dtype = keras.dtype_policies.get(config["dtype"])
        return cls(wrapped, name=config["name"], dtype=dtype)


@keras.saving.register_keras_serializable("test_float32")
class Loud(layers.Layer):
    """Takes and gives dicts, counts itself, adds losses, notes what it was given."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)

    def build(self, shape):
        self.dense.build(shape["x"])

    def call(self, inputs, factor=1.0, training=None):
        self.seen = inputs["x"].dtype, inputs["ids"].dtype, training
        self.add_loss(keras.ops.sum(inputs["x"]))
        return {"y": self.dense(inputs["x"]) * factor, "ids": inputs["ids"] + 1}


def ones(units=1, **kwargs):
    return layers.Dense(units, use_bias=False, kernel_initializer="ones", **kwargs)


def in_models(wrap):
    """Return the same float32 layer inside the three kinds of models."""
    inputs = keras.Input((3, 5))
    outputs = wrap()(layers.Dense(4, name="body")(inputs))
    return {
        "functional": keras.Model(inputs, outputs),
        "sequential": keras.Sequential([layers.Dense(4, name="body"), wrap()]),
        "subclassed": Net(wrap()),
    }


KINDS = ["functional", "sequential", "subclassed"]

WRAPPED = {
    "dense": lambda: layers.Dense(2),
    "norm": lambda: layers.BatchNormalization(),
    "rnn": lambda: layers.LSTM(2, return_sequences=True),
    "both": lambda: layers.Bidirectional(layers.GRU(2)),
    "each": lambda: layers.TimeDistributed(layers.Dense(2)),
    "model": lambda: keras.Sequential([layers.Dense(3), layers.Dense(2)]),
    "functional": lambda: small_functional(),
    "lambda": lambda: layers.Lambda(keras.ops.tanh, output_shape=lambda s: s),
}


def small_functional():
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layers.Dense(2)(inputs))


def test_runs_in_float32_and_hands_back_the_dtype_around_it():
    inner = layers.Dense(2)
    layer = Float32(inner)
    result = layer(X)
    assert result.dtype == "float16"
    assert layer.compute_dtype == inner.compute_dtype == "float32"
    expected = X @ inner.kernel.numpy() + inner.bias.numpy()
    # Float32 sums of five, then one rounding to float16.
    np.testing.assert_allclose(result, expected, rtol=2.0**-11 + 5e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "output_dtype", "expected"),
    [
        ("mixed_float16", None, "float16"),
        ("mixed_bfloat16", None, "bfloat16"),
        ("float32", None, "float32"),
        ("mixed_float16", "float32", "float32"),
        ("mixed_float16", "bfloat16", "bfloat16"),
    ],
)
def test_output_dtype(policy, output_dtype, expected):
    layer = Float32(layers.Dense(2), output_dtype, dtype=policy)
    assert layer(keras.Input((3, 5))).dtype == expected
    assert layer(X).dtype.name == expected


@pytest.mark.parametrize("inner", WRAPPED)
@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_is_the_layer_in_float32(inner, built):
    inputs = X[..., :4]
    with keras_mp.policy_scope("float32"):
        reference = WRAPPED[inner]()
        expected = reference(inputs)
    wrapped = WRAPPED[inner]()
    if built:
        wrapped(inputs)
    layer = Float32(wrapped, output_dtype="float32")
    layer(inputs)
    layer.set_weights(reference.get_weights())
    result = layer(inputs)
    assert result.dtype == "float32"
    # The same operations in float32, whatever the wrapping.
    np.testing.assert_array_equal(result, expected)


def test_float32_inputs_are_not_rounded_to_float16_first():
    inputs = keras.Input((3,))
    outputs = Float32(ones(), output_dtype="float32")(inputs)
    functional = keras.Model(inputs, outputs)
    sequential = keras.Sequential(
        [keras.Input((3,)), Float32(ones(), output_dtype="float32")]
    )
    alone = Float32(ones(), output_dtype="float32")
    # A float32 sum of numbers that it holds exactly up to the last, which it drops.
    for result in (
        functional(HARD),
        functional.predict(HARD, verbose=0),
        sequential(HARD),
        sequential.predict(HARD, verbose=0),
        alone(HARD),
        alone(tf.constant(HARD)),
    ):
        np.testing.assert_array_equal(result, [[102049.0]])
    assert np.isinf(ones()(HARD)).all()  # what float16 makes of it
    each = Float32(layers.Activation("linear"), output_dtype="float32")
    np.testing.assert_array_equal(each(HARD), HARD)


def test_keyword_and_nested_float32_inputs_are_not_rounded_either():
    add = Float32(layers.Add(), output_dtype="float32")
    np.testing.assert_array_equal(add([HARD, HARD]), 2 * HARD)
    loud = Float32(Loud(), output_dtype="float32")
    loud({"x": HARD, "ids": IDS[:1]})
    assert float(loud.losses[0]) == 102049.0


def test_mask_of_an_embedding_reaches_an_rnn():
    embedded = layers.Embedding(4, 5, mask_zero=True)(IDS)
    inner = layers.LSTM(2, return_sequences=True)
    layer = Float32(inner, output_dtype="float32")
    result = layer(embedded)
    with keras_mp.policy_scope("float32"):
        reference = layers.LSTM(2, return_sequences=True)
        reference.build((None, 3, 5))
        reference.set_weights(inner.get_weights())
    expected = reference(keras.ops.cast(embedded, "float32"), mask=tf.constant(MASK))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result._keras_mask, MASK)
    unmasked = reference(keras.ops.cast(embedded, "float32"))
    assert np.any(np.asarray(unmasked) != expected)


def test_last_state_of_a_masked_rnn_is_that_of_the_last_word():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(4, 5, mask_zero=True),
            Float32(layers.LSTM(2)),
        ]
    )
    padded = np.pad(IDS, ((0, 0), (0, 2)))
    # The padding is skipped, so the state passes through it as it is.
    np.testing.assert_array_equal(model(padded), model(IDS))
    assert np.any(model(padded)[0] != model(padded)[1])


@pytest.mark.parametrize("output_dtype", [None, "float32"])
def test_masking_goes_through_a_layer_without_use_for_it(output_dtype):
    inputs = X.copy()
    inputs[0, 2] = inputs[1, 1:] = 0.0
    expected = np.any(inputs != 0, axis=-1)
    masked = layers.Masking()(inputs)
    for inner in (layers.Dense(2), layers.Activation("tanh"), layers.Dropout(0.5)):
        result = Float32(inner, output_dtype=output_dtype)(masked)
        np.testing.assert_array_equal(result._keras_mask, expected)


def test_mask_is_not_passed_on_by_a_layer_that_ends_it():
    masked = layers.Embedding(4, 5, mask_zero=True)(IDS)
    result = Float32(layers.GlobalAveragePooling1D())(masked)
    assert getattr(result, "_keras_mask", None) is None
    assert result.shape == (4, 5)
    # Keras 3.12 loses the mask of a float16 input, so it is passed by name here.
    average = layers.GlobalAveragePooling1D(dtype="float32")
    expected = average(masked, mask=masked._keras_mask)
    # One rounding to float16, of values below 0.1.
    np.testing.assert_allclose(result, expected, atol=2.0**-15)


def test_mask_argument():
    mask = np.array([[True, True, False, False, True]] * 3)[None].repeat(4, axis=0)
    result = Float32(layers.Softmax())(X, mask=mask)
    expected = layers.Softmax(dtype="float32")(X, mask=mask)
    np.testing.assert_array_equal(result, np.asarray(expected).astype("float16"))
    assert np.all(np.asarray(result)[~mask] == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_flag(kind):
    model = in_models(lambda: Float32(layers.Dropout(0.5)))[kind]
    calm = np.asarray(model(X))
    np.testing.assert_array_equal(model(X, training=False), calm)
    assert np.all(calm != 0)
    dropped = np.asarray(model(X, training=True))
    share = np.mean(dropped == 0)
    assert 0.1 < share < 0.9  # of 48 at one half each: 5 standard deviations off


def test_batch_normalization_learns_in_training_only():
    inner = layers.BatchNormalization(momentum=0.0)
    layer = Float32(inner)
    layer(X)
    np.testing.assert_array_equal(inner.moving_mean, np.zeros(5))
    layer(X * 1000, training=True)  # squares beyond float16
    # Float32 sums of twelve.
    flat = X.astype("float64").reshape(-1, 5) * 1000
    np.testing.assert_allclose(inner.moving_mean, flat.mean(0), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(inner.moving_variance, flat.var(0), rtol=1e-5)


def attention_reference(inner, query, value, mask):
    with keras_mp.policy_scope("float32"):
        reference = layers.MultiHeadAttention(2, 3)
        reference.build(query.shape, value.shape)
        reference.set_weights(inner.get_weights())
        return reference(
            query, value, attention_mask=mask, return_attention_scores=True
        )


@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
def test_attention_with_all_its_arguments(built):
    query, value = X, RNG.normal(size=(4, 2, 5)).astype("float32")
    mask = np.array([[[True, False], [True, True], [False, True]]] * 4)
    inner = layers.MultiHeadAttention(2, 3)
    if built:
        inner(query, value)
    layer = Float32(inner)
    output, scores = layer(
        query, value, attention_mask=mask, return_attention_scores=True
    )
    assert output.dtype == scores.dtype == "float16"
    assert {i.compute_dtype for i in inner._flatten_layers()} == {"float32"}
    expected = attention_reference(inner, query, value, mask)
    for result, number in zip((output, scores), expected, strict=True):
        np.testing.assert_array_equal(result, np.asarray(number).astype("float16"))
    assert layer(query, value=value).shape == (4, 3, 5)


def test_symbolic_attention():
    query, value = keras.Input((3, 5)), keras.Input((2, 5))
    outputs = Float32(layers.MultiHeadAttention(2, 3))(query, value)
    model = keras.Model([query, value], outputs)
    assert model.output.dtype == "float16"
    result = model([X, X[:, :2]])
    assert result.dtype == "float16"
    assert result.shape == (4, 3, 5)


@pytest.mark.parametrize("way", ["functional", "eager", "eager_unbuilt"])
def test_mask_reaches_attention(way):
    embedding = layers.Embedding(4, 5, mask_zero=True)
    inner = layers.MultiHeadAttention(2, 3)
    layer = Float32(inner, output_dtype="float32")
    if way == "functional":
        ids = keras.Input((3,), dtype="int32")
        embedded = embedding(ids)
        result = keras.Model(ids, layer(embedded, embedded))(IDS)
    else:
        if way == "eager":
            layer(X, X)
        embedded = embedding(IDS)
        result = layer(embedded, embedded)
    plain = np.asarray(embedding(IDS))
    mask = MASK[:, :, None] & MASK[:, None, :]
    expected = attention_reference(inner, plain, plain, mask)[0]
    unmasked = attention_reference(inner, plain, plain, None)[0]
    # Float32 sums of three in another order.
    np.testing.assert_allclose(result[MASK], expected[MASK], atol=1e-6)
    assert np.abs(unmasked - expected)[MASK].max() > 1e-3


def test_dicts_and_lists_of_inputs_and_outputs():
    layer = Float32(Loud())
    outputs = layer({"x": X, "ids": IDS}, factor=2.0)
    assert layer.layer.seen[:2] == ("float32", tf.int64)
    assert outputs["y"].dtype == "float16"
    assert outputs["ids"].dtype == "int64"
    np.testing.assert_array_equal(outputs["ids"], IDS + 1)
    result = Float32(layers.Concatenate())([X, X.astype("float16")])
    assert (result.dtype, result.shape) == ("float16", (4, 3, 10))
    inputs = {
        "x": keras.Input((3, 5), name="x"),
        "ids": keras.Input((3,), dtype="int64", name="ids"),
    }
    symbolic = layer(inputs)
    assert (symbolic["y"].dtype, symbolic["ids"].dtype) == ("float16", "int64")
    model = keras.Model(inputs, symbolic)
    assert model({"x": X, "ids": IDS})["y"].dtype == "float16"


def test_rnn_with_states():
    states = [RNG.normal(size=(4, 2)).astype("float32") for _ in range(2)]
    inner = layers.LSTM(2, return_state=True, return_sequences=True)
    layer = Float32(inner)
    outputs = layer(X, initial_state=states)
    assert [output.dtype for output in outputs] == ["float16"] * 3
    with keras_mp.policy_scope("float32"):
        reference = layers.LSTM(2, return_state=True, return_sequences=True)
        reference.build((None, 3, 5))
        reference.set_weights(inner.get_weights())
    expected = reference(X, initial_state=states)
    for result, number in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(result, np.asarray(number).astype("float16"))


def test_masked_rnn_with_states():
    embedded = layers.Embedding(4, 5, mask_zero=True)(IDS)
    layer = Float32(layers.LSTM(2, return_state=True, return_sequences=True))
    sequence, *states = layer(embedded)
    np.testing.assert_array_equal(sequence._keras_mask, MASK)
    assert all(getattr(state, "_keras_mask", None) is None for state in states)


def test_losses():
    arguments = {"activity_regularizer": "l2", "kernel_regularizer": "l1"}
    layer = Float32(layers.Dense(2, **arguments))
    output = layer(X * 2000)
    reference = layers.Dense(2, **arguments, dtype="float32")
    reference.build((None, 5))
    reference.set_weights(layer.get_weights())
    reference(X * 2000)  # squares beyond float16's range
    assert output.dtype == "float16"
    assert len(layer.losses) == 2
    assert sorted(map(float, layer.losses)) == sorted(map(float, reference.losses))
    assert max(map(float, layer.losses)) > 65504


def test_weights_are_those_of_the_layer_and_have_gradients():
    inner = layers.Dense(2)
    layer = Float32(inner)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(X), "float32") ** 2)
    assert layer.trainable_variables == inner.trainable_variables
    gradients = tape.gradient(loss, layer.trainable_variables)
    expected = 2 * np.einsum("btu,btv->uv", X, X @ inner.kernel.numpy())
    # The outputs, and what comes back through their cast, are rounded to float16.
    np.testing.assert_allclose(gradients[0], expected, rtol=0.01, atol=0.02)
    assert {g.dtype for g in gradients} == {tf.float32}
    layer.trainable = False
    assert inner.trainable_variables == layer.trainable_variables == []


@pytest.mark.parametrize(
    ("inner", "kind"),
    [(inner, "functional") for inner in WRAPPED]
    + [(inner, "sequential") for inner in ("dense", "both", "functional")]
    + [(inner, "subclassed") for inner in ("dense", "both", "model")],
)
def test_save_and_load(inner, kind, tmp_path):
    model = in_models(lambda: Float32(WRAPPED[inner](), name="island"))[kind]
    expected = model(X)
    assert expected.dtype == "float16"
    model.save(tmp_path / "model.keras")
    safe = inner != "lambda"
    with keras_mp.policy_scope("mixed_bfloat16"):
        loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=safe)
        result = loaded(X)
    assert result.dtype == "float16"
    np.testing.assert_array_equal(result, expected)
    island = next(i for i in loaded._flatten_layers() if i.name == "island")
    assert type(island) is Float32
    assert {
        i.compute_dtype
        for i in island._flatten_layers()
        if not isinstance(i, layers.InputLayer)
    } == {"float32"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_compile_and_fit_two_steps(kind, tmp_path):
    model = in_models(
        lambda: Float32(
            keras.Sequential([layers.BatchNormalization(), layers.Dense(2)]),
            output_dtype="float32",
        )
    )[kind]
    model(X)
    before = model.get_weights()
    rule = keras_mp.scaling.StaticLossScale(64.0)  # no gradient comes near 1000
    keras_mp.compile(model, "sgd", loss="mse", scaling=rule)
    model.fit(X, np.ones((4, 3, 2), "float32"), batch_size=2, verbose=0)
    assert model.optimizer.stats()["applied"] == 2
    for after, weight in zip(model.get_weights(), before, strict=True):
        assert np.isfinite(after).all()
        assert np.any(after != weight)
    predictions = model.predict(X, verbose=0)
    assert predictions.dtype == "float32"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), predictions)
    loaded.fit(X, np.ones((4, 3, 2), "float32"), batch_size=2, verbose=0)


@pytest.mark.parametrize("as_json", [True, False])
def test_config_round_trip(as_json):
    policy = keras_mp.Policy("mixed_float16", float32=["head"])
    layer = Float32(layers.Dense(2, name="inner"), "float32", dtype=policy, name="mine")
    config = layer.get_config()
    before = copy.deepcopy(config)
    again = Float32.from_config(config)
    assert config == before
    assert again.get_config() == before
    assert again.name == "mine"
    assert again.layer.name == "inner"
    assert again.layer.units == 2
    assert again.outer_policy == policy
    assert again(X).dtype == "float32"


def test_from_config_with_custom_objects():
    class Mine(layers.Dense):
        pass

    config = Float32(Mine(2)).get_config()
    again = Float32.from_config(config, custom_objects={"Mine": Mine})
    assert type(again.layer) is Mine
    with keras.saving.custom_object_scope({"Mine": Mine}):
        assert type(Float32.from_config(config).layer) is Mine


def test_name_and_keras_arguments():
    inner = layers.Dense(2, name="inner")
    assert Float32(inner).name == "float32_inner"
    assert Float32(inner, name="other").name == "other"
    layer = Float32(layers.Dense(2), trainable=False)
    layer(X)
    assert len(layer.non_trainable_variables) == 2
    assert layer.trainable_variables == []
    assert layer.supports_masking


def test_build_makes_the_variables():
    layer = Float32(layers.Dense(2))
    layer.build((None, 5))
    assert [w.shape for w in layer.weights] == [(5, 2), (2,)]
    attention = Float32(layers.MultiHeadAttention(2, 3))
    attention.build((None, 3, 5), (None, 2, 5))
    assert len(attention.weights) == 8


def test_layer_that_makes_its_layers_when_it_is_built():
    class Late(layers.Layer):
        def build(self, shape):
            self.late = layers.Dense(2)
            self.late.build(shape)

        def call(self, x):
            return self.late(x)

    layer = Float32(Late(), output_dtype="float32")
    result = layer(HARD / 10)
    assert layer.layer.late.compute_dtype == "float32"
    expected = HARD / 10 @ layer.layer.late.kernel.numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5)  # a float32 sum of three


def test_islands_inside_hand_back_float32():
    inner = keras.Sequential([layers.Dense(3), Softmax(), Float32(layers.Dense(2))])
    layer = Float32(inner, output_dtype="float32")
    with keras_mp.policy_scope("float32"):
        reference = keras.Sequential(
            [layers.Dense(3), layers.Softmax(), layers.Dense(2)]
        )
    layer(X)
    reference(X)
    reference.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(X), reference(X))


def test_lookup_inside_keeps_its_integers():
    inner = keras.Sequential(
        [layers.IntegerLookup(vocabulary=[1, 2, 3]), layers.Embedding(5, 2)]
    )
    expected = np.asarray(inner(IDS))
    layer = Float32(inner)
    assert layer(IDS).dtype == "float16"
    np.testing.assert_array_equal(layer(IDS), expected.astype("float16"))
    assert inner.layers[0].compute_dtype == "int64"


def test_hashing_inside_keeps_its_integers():
    inner = layers.Hashing(10)
    expected = inner(IDS)
    result = Float32(inner)(IDS)
    assert result.dtype == expected.dtype == "int64"
    np.testing.assert_array_equal(result, expected)


def test_wrapping_leaves_the_global_policy_alone():
    Float32(layers.Dense(2))(X)
    assert layers.Dense(2).compute_dtype == "float16"


@pytest.mark.parametrize(
    "bad",
    [keras.ops.tanh, "dense", None, layers.Dense],
    ids=["function", "name", "None", "class"],
)
def test_what_is_no_layer_is_refused(bad):
    with pytest.raises(TypeError, match="needs a keras layer.*Got.*Activation"):
        Float32(bad)


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_layer_with_low_precision_variables_is_refused(low):
    inner = layers.Dense(2, name="inner", dtype=low)
    Float32(layers.Dense(2, dtype=low))  # unbuilt: its variables will be float32
    inner.build((None, 5))
    with pytest.raises(ValueError, match="'inner'.*kernel.*low precision|low"):
        Float32(inner)
    assert inner.compute_dtype == low


def test_bad_output_dtype_is_refused():
    with pytest.raises(ValueError, match=r"Float32\(output_dtype='int32'\)"):
        Float32(layers.Dense(2), output_dtype="int32")
