"""The last layer of a model is in 16 bits only for logits and probabilities."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import heads
from keras_mp.placement import placement_report

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
YEARS = (2000 + 5 * X[:, :1]).astype("float32")
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def sequential(*last):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), *(last or [layers.Dense(1)])]
    )


def dtypes(model):
    return [layer.compute_dtype for layer in model.layers]


class Own(keras.Model):
    def __init__(self, squeezes=False):
        super().__init__()
        self.body, self.out = layers.Dense(8, "relu"), layers.Dense(1)
        self.squeezes = squeezes

    def call(self, x):
        y = self.out(self.body(x))
        return keras.ops.squeeze(y, -1) if self.squeezes else y


@pytest.mark.parametrize(
    "loss",
    [
        LOGITS,
        "binary_crossentropy",
        "sparse_categorical_crossentropy",
        keras.losses.categorical_crossentropy,
        keras.losses.CategoricalFocalCrossentropy(),
        keras.losses.KLDivergence(),
        "hinge",
        None,  # nothing tells
    ],
)
def test_heads_of_logits_stay_in_16_bits(loss):
    model = sequential()
    keras_mp.compile(model, "sgd", loss, policy="mixed_float16")
    assert dtypes(model) == ["float16", "float16"]


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        keras.losses.Huber(),
        keras.losses.mean_absolute_error,
        keras.losses.Poisson(),
        lambda y, p: keras.ops.mean(keras.ops.abs(y - p)),
    ],
)
def test_other_heads_are_in_float32_and_reported(loss):
    model = sequential()
    keras_mp.compile(model, "sgd", loss, policy="mixed_float16")
    assert dtypes(model) == ["float16", "float32"]
    assert placement_report(model)[-1].reason == heads.reason(model.layers[-1])
    assert "head" in heads.reason(model.layers[-1])
    assert not [f for f in keras_mp.lint(model) if f.severity != "note"]


def test_what_lies_behind_the_product_is_in_float32_too():
    model = sequential(
        layers.Dense(4), layers.Dropout(0.1), layers.Activation("gelu"), layers.ReLU()
    )
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16")
    assert dtypes(model) == ["bfloat16"] + ["float32"] * 4


def test_each_output_goes_by_its_own_loss():
    inputs = keras.Input((4,))
    x = layers.Dense(8)(inputs)
    outputs = {"year": layers.Dense(1)(x), "kind": layers.Dense(3)(x)}
    model = keras.Model(inputs, outputs)
    losses = {"year": "mse", "kind": LOGITS}
    keras_mp.compile(model, "sgd", losses, policy="mixed_float16")
    year, kind = (outputs[name]._keras_history.operation for name in ("year", "kind"))
    assert (year.compute_dtype, kind.compute_dtype) == ("float32", "float16")
    listed = keras.Model(inputs, [outputs["kind"], outputs["year"]])
    keras_mp.compile(listed, "sgd", ["mse", LOGITS], policy="mixed_float16")
    year, kind = (outputs[name]._keras_history.operation for name in ("year", "kind"))
    assert (year.compute_dtype, kind.compute_dtype) == ("float16", "float32")


def test_a_nested_model_and_operations_are_looked_through():
    inner = sequential()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inputs) * 2.0)
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    assert dtypes(inner) == ["float16", "float32"]


def test_a_rule_allows_a_low_head_and_lint_names_it():
    model = sequential(layers.Dense(1, name="out"))
    policy = keras_mp.Policy("mixed_float16", allow=["out"])
    keras_mp.compile(model, "sgd", "mse", policy=policy)
    assert dtypes(model) == ["float16", "float16"]
    assert heads.reason(model.layers[-1]) is None


def test_compiling_for_logits_gives_the_head_back():
    model = sequential()
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    assert dtypes(model) == ["float16", "float16"]
    keras_mp.convert(model, "float32")
    assert dtypes(model) == ["float32", "float32"]


MAKERS = {"sequential": sequential, "own": Own, "own squeezes": lambda: Own(True)}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_years_are_told_apart(name, policy):
    with keras_mp.policy_scope(policy):
        model = MAKERS[name]()
    keras_mp.compile(model, keras.optimizers.SGD(0.0), "mae")
    model.fit(X, YEARS, verbose=0)
    head = model._flatten_layers(recursive=True)
    (head,) = (each for each in head if getattr(each, "units", None) == 1)
    head.set_weights([head.get_weights()[0], np.array([2000.0], "float32")])
    predictions = model.predict(X, verbose=0)
    assert predictions.dtype == "float32"
    assert len(np.unique(predictions)) > 60  # of 64; float16 has four such years
    exact = np.abs(YEARS.ravel() - predictions.ravel()).mean()
    assert model.evaluate(X, YEARS, verbose=0) == pytest.approx(exact, rel=1e-5)


def test_years_in_an_own_model_step_by_step():
    with keras_mp.policy_scope("mixed_float16"):
        model = Own()
    keras_mp.compile(model, "sgd", "mae", run_eagerly=True)
    assert model.predict(X, verbose=0).dtype == "float32"
    assert model.out.compute_dtype == "float16"
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    low = model.predict(X, verbose=0)
    np.testing.assert_array_equal(low, low.astype("float16"))


def test_the_last_layer_may_be_one_of_ones_own():
    class Last(layers.Layer):
        def __init__(self):
            super().__init__()
            bias = keras.initializers.Constant(2000.0)
            self.dense = layers.Dense(1, bias_initializer=bias)

        def call(self, x):
            return self.dense(x)

    for loss, exact in (("mae", True), ("binary_crossentropy", False)):
        with keras_mp.policy_scope("mixed_float16"):
            model = sequential(Last())
        keras_mp.compile(model, "sgd", loss)
        predictions = model.predict(X, verbose=0)
        assert (len(np.unique(predictions)) > 60) == exact


def test_a_recurrent_head_is_in_float32_as_a_whole():
    model = keras.Sequential([keras.Input((3, 4)), layers.LSTM(2)])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    assert {each.compute_dtype for each in model.layers[0]._flatten_layers()} == {
        "float32"
    }
