"""The report names every layer that computes, where it does, and why."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import Policy, policy_scope
from keras_mp.placement import placement_report

X = np.ones((2, 3, 4), "float32")


def attention_model():
    inputs = keras.Input((3, 4), name="in")
    x = layers.LayerNormalization(name="norm")(inputs)
    x = layers.MultiHeadAttention(2, 2, name="attend")(x, x)
    x = keras_mp.layers.Float32(layers.Dense(4, name="inner"), name="kept")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(4, activity_regularizer="l2", name="body")(x)
    x = layers.Dense(4, name="head")(x)
    return keras.Model(inputs, layers.Softmax(name="top")(x), name="net")


def by_path(report):
    return {place.path.split("/", 1)[-1]: place for place in report}


def test_every_layer_has_its_dtype_and_reason():
    report = keras_mp.convert(attention_model(), Policy("mixed_float16", ["head"]))
    found = {path: (p.compute_dtype, p.reason) for path, p in by_path(report).items()}
    assert found["attend"] == found["body"] == ("float16", "the policy")
    assert found["kept"] == found["kept/inner"] == ("float32", "a float32 island")
    assert found["flat"] == ("float16", "as its inputs: moves numbers only")
    assert found["head"] == ("float32", "a rule of the policy")
    assert found["top"] == ("float32", "not safe in 16 bits")
    (softmax,) = (p for p in report if p.path.startswith("net/attend/softmax"))
    assert softmax[2:4] == ("float32", "a guard of the layer around")
    assert not any("/in" == place.path[-3:] for place in report)


def test_guards_are_named():
    report = keras_mp.convert(attention_model(), "mixed_bfloat16")
    places = by_path(report)
    assert places["attend"].guards == ("scores and softmax",)
    assert places["body"].guards == ("activity regularizer",)
    assert places["head"].guards == places["top"].guards == ()


def test_what_a_rule_allows_has_no_guards():
    policy = Policy("mixed_float16", allow=["attend", "top"])
    places = by_path(keras_mp.convert(attention_model(), policy))
    for name in ("attend", "top"):
        assert places[name][2:] == ("float16", "a rule allows it", ())


def test_guards_from_before_a_rule_are_named():
    model = attention_model()
    keras_mp.convert(model, "mixed_float16")
    places = by_path(keras_mp.convert(model, Policy("mixed_float16", allow=["attend"])))
    assert places["attend"][3:] == ("a rule allows it", ("scores and softmax",))


def test_what_cannot_be_converted_says_so():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int64"),
            layers.IntegerLookup(vocabulary=[5, 7], name="lookup"),
            layers.Embedding(4, 4, name="table"),
        ]
    )
    places = by_path(keras_mp.convert(model, "mixed_float16"))
    assert places["table"][2:4] == ("float16", "the policy")
    assert places["lookup"][2:4] == ("int64", "computes no floats")


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_layer_says_so():
    layer = layers.Dense(4, name="small")
    layer.build((2, 4))
    layer.quantize("int8")
    (place,) = keras_mp.convert(layer, "mixed_float16")
    assert place.reason == "quantized"


def test_a_shared_layer_is_named_once():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)), name="net")
    paths = [place.path for place in keras_mp.convert(model, "mixed_float16")]
    assert paths == ["net", "net/shared"]


def test_under_float32_all_is_by_the_policy():
    report = keras_mp.convert(attention_model(), "float32")
    assert {place.compute_dtype for place in report} == {"float32"}
    assert {place.reason for place in report} == {"the policy", "a float32 island"}
    assert not any(place.guards for place in report)


def test_a_report_of_a_model_made_under_a_policy():
    with policy_scope("mixed_float16"):
        model = attention_model()
    places = by_path(placement_report(model))
    assert places["top"].reason == "not safe in 16 bits"
    assert "in float16" in str(placement_report(model)).splitlines()[-1]


class Plain(layers.Layer):
    def call(self, x):
        return 2 * x


class Adding(Plain):
    def call(self, x):
        self.add_loss(keras.ops.mean(x))
        return super().call(x)


class AddingInside(Plain):
    """Its loss is added by a function inside a decorated method."""

    @keras_mp.float32
    def call(self, x):
        def add(value):
            self.add_loss(value)

        add(keras.ops.mean(x))
        return x


class AddingThere(Adding):
    """What adds losses is inherited."""


class AddingProperty(Plain):
    @property
    def penalty(self):
        return self.add_loss(1.0)

    @staticmethod
    def other():
        return 0


@pytest.mark.parametrize(
    ("layer_class", "adds"),
    [
        (Plain, False),
        (Adding, True),
        (AddingInside, True),
        (AddingThere, True),
        (AddingProperty, True),
    ],
)
def test_add_loss_is_named_where_code_adds_losses(layer_class, adds):
    layer = layer_class()
    (place,) = keras_mp.convert(layer, "mixed_float16")
    assert ("add_loss" in place.guards) == adds
    assert "add_loss" in vars(layer)  # the guard is on whatever the report says
