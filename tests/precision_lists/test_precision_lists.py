"""The lists are data: what is on them, and how a policy extends them."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp import Policy, flow, policy_scope, precision_lists

X = np.linspace(-2, 2, 24, dtype="float32").reshape(2, 3, 4)


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


DENIED = {
    "softmax": lambda: layers.Softmax(),
    "softmax_function": lambda: layers.Activation("softmax"),
    "exponential": lambda: layers.Activation("exponential"),
    "unit_norm": lambda: layers.UnitNormalization(),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", DENIED)
def test_denied_layers_compute_in_float32_without_being_asked(name, low):
    with policy_scope(f"mixed_{low}"):
        layer = DENIED[name]()
    plain = DENIED[name]()
    assert layer.compute_dtype == "float32"
    assert layer.get_config()["dtype"]["class_name"] == "DTypePolicy"  # plain Keras's
    assert dtype_of(layer(X)) == low  # as Keras hands it to code of one's own
    with flow.read_by(flow.GRAPH):
        result = layer(X)
    np.testing.assert_array_equal(result, plain(X))  # the very same operations


def test_a_condition_is_on_an_attribute():
    with policy_scope("mixed_float16"):
        cosine = layers.Dot(axes=-1, normalize=True)
        product = layers.Dot(axes=-1)
        gelu = layers.Activation("gelu")
    x = np.full((1, 64), 300.0, "float32")  # the sum of squares is beyond float16
    assert float(cosine([x, x])[0, 0]) == pytest.approx(1.0, abs=1e-6)
    assert cosine.compute_dtype == "float32"
    assert product.compute_dtype == gelu.compute_dtype == "float16"


INSIDE = {
    "average": (lambda: layers.AveragePooling1D(3), X),
    "max": (lambda: layers.MaxPooling3D(1), X[..., None, None]),
    "elu": (lambda: layers.ELU(), X / 1e4),
    "bicubic": (lambda: layers.UpSampling2D(interpolation="bicubic"), X[..., None]),
    "elu_function": (lambda: layers.Activation("elu"), X / 1e4),
    "squareplus": (lambda: layers.Activation("squareplus"), X * 1e4),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", INSIDE)
def test_layers_in_float32_inside_hand_on_what_came_in(name, low):
    make, x = INSIDE[name]
    with policy_scope(f"mixed_{low}"):
        layer = make()
    x = keras.ops.cast(x, low)
    result, exact = layer(x), make()(keras.ops.cast(x, "float32"))
    assert layer.compute_dtype == dtype_of(result) == low
    np.testing.assert_array_equal(result, keras.ops.cast(exact, low))
    in_float32 = make()
    in_float32.build(x.shape)
    assert not hasattr(in_float32.call, "__wrapped__")


def test_a_wrapper_that_computes_by_its_layer_is_where_that_is():
    with policy_scope("mixed_float16"):
        wrapper = layers.TimeDistributed(layers.UnitNormalization())
    x = 1e-4 * X  # squares of which float16 has not
    expected = layers.UnitNormalization()(x)
    result = wrapper(x)
    assert dtype_of(result) == "float16"
    np.testing.assert_array_equal(result, keras.ops.cast(expected, "float16"))


def test_layers_that_follow_keep_the_dtype_that_comes_in():
    with policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((3, 4)),
                layers.Reshape((12,)),
                layers.Dense(4),
                layers.Flatten(),
                layers.Softmax(),
                layers.Reshape((2, 2)),
            ]
        )
    seen, x = [], keras.ops.convert_to_tensor(X)
    with flow.read_by(flow.GRAPH):
        for layer in model.layers:
            x = layer(x)
            seen.append(dtype_of(x))
    assert seen == ["float32", "float16", "float16", "float32", "float32"]
    add = layers.Add(dtype=Policy("mixed_float16"))
    both = [keras.ops.ones((2, 3), "float16"), keras.ops.ones((2, 3), "float32")]
    assert dtype_of(add(both)) == "float32"  # the widest


def test_a_layer_that_follows_adds_noise_in_the_dtype_that_comes_in():
    with policy_scope("mixed_float16"):
        noise = layers.GaussianNoise(0.1, seed=1)
    pixels = keras.ops.full((4, 8), 65535.0, "float32")
    noisy = noise(pixels, training=True)
    assert dtype_of(noisy) == "float32"
    np.testing.assert_allclose(noisy, pixels, atol=1.0)  # ten standard deviations
    assert len(np.unique(noisy)) > 8
    assert dtype_of(noise(keras.ops.ones((4, 8), "float16"), training=True)) == (
        "float16"
    )


PIXELS = np.array([65535.0, 4097.0], "float32").reshape(1, 1, 2, 1)


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("container", [layers.Pipeline, keras.Sequential])
def test_containers_of_augmentation_hand_on_raw_pixels(container, low):
    with policy_scope(f"mixed_{low}"):
        made = container([layers.RandomFlip("vertical"), layers.CenterCrop(1, 2)])
    np.testing.assert_array_equal(made(PIXELS), PIXELS)


def test_a_pipeline_hands_on_what_its_last_layer_does():
    with policy_scope("mixed_float16"):
        made = layers.Pipeline([layers.Rescaling(1 / 255), layers.Dense(2)])
    assert dtype_of(made(PIXELS)) == "float16"


@pytest.mark.parametrize("policy", ["float32", Policy("mixed_float16", allow=["flat"])])
def test_layers_follow_no_longer_than_the_policy_says(policy):
    model = keras.Sequential([keras.Input((3, 4)), layers.Flatten(name="flat")])
    flat, doubles = model.layers[0], keras.ops.ones((2, 3), "float64")
    before = dtype_of(flat(doubles))
    keras_mp.convert(model, "mixed_float16")
    assert (before, dtype_of(flat(doubles))) == ("float32", "float64")
    keras_mp.convert(model, policy)
    assert dtype_of(flat(doubles)) == flat.compute_dtype


def test_a_layer_that_casts_nothing_by_itself_never_does():
    flat = layers.Flatten(name="flat", autocast=False)
    keras_mp.convert(flat, "mixed_float16")
    keras_mp.convert(flat, "float32")
    assert dtype_of(flat(keras.ops.ones((2, 3), "float64"))) == "float64"


@pytest.mark.parametrize("rule", ["probabilities", layers.Softmax, ".*"])
def test_a_policy_may_allow_what_the_list_denies(rule, tmp_path):
    with policy_scope(Policy("mixed_float16", allow=[rule])):
        model = keras.Sequential(
            [keras.Input((4,)), layers.Softmax(name="probabilities")]
        )
    assert model.layers[0].compute_dtype == "float16"
    keras_mp.compile(model, "sgd", "mse")
    assert model.layers[0].compute_dtype == "float16"
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].compute_dtype == "float16"


def test_a_policy_may_have_layers_follow():
    with policy_scope(Policy("mixed_float16", follow=["keeps"])):
        layer = layers.Activation("gelu", name="keeps")
        other = layers.Activation("gelu")
    assert dtype_of(layer(keras.ops.ones((2, 3)))) == "float32"
    assert dtype_of(other(keras.ops.ones((2, 3)))) == "float16"


def test_a_rule_of_float32_comes_before_the_others():
    policy = Policy("mixed_float16", float32=["a"], allow=["a"], follow=["a"])
    assert layers.Dense(2, name="a", dtype=policy).compute_dtype == "float32"


def test_a_policy_with_other_rules_round_trips():
    policy = Policy("mixed_float16", ["a"], allow=[layers.Softmax], follow=["b.*"])
    again = keras.dtype_policies.deserialize(keras.dtype_policies.serialize(policy))
    assert again == policy and hash(again) == hash(policy)
    assert again != Policy("mixed_float16", ["a"])
    assert repr(policy) == (
        "<Policy 'mixed_float16', float32=['a'], allow=['Softmax'], follow=['b.*']>"
    )


def test_rules_of_every_list_are_checked_and_reported():
    with pytest.raises(TypeError, match=r"Policy\(allow=\[...\]\)"):
        Policy("mixed_float16", allow=[3])
    with pytest.raises(ValueError, match=r"Policy\(follow=\['\('\]\)"):
        Policy("mixed_float16", follow=["("])
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    with pytest.warns(UserWarning, match="'nothing' matches no layer"):
        keras_mp.compile(
            model, "sgd", "mse", policy=Policy("mixed_float16", allow=["nothing"])
        )


def test_layers_under_keras_own_policies_are_left_until_the_model_is_compiled():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Softmax(dtype="mixed_float16", name="top")]
    )
    assert model.layers[0].compute_dtype == "float16"
    keras_mp.compile(model, "sgd", "mse")
    assert model.layers[0].compute_dtype == "float32"


def test_the_lists_do_not_overlap_and_hold_layers_of_keras():
    classes = [rule for rule in precision_lists.DENY if isinstance(rule, type)]
    inside = [rule for rule in precision_lists.INSIDE if isinstance(rule, type)]
    everything = [*classes, *inside, *precision_lists.ALLOW, *precision_lists.FOLLOW]
    assert len(everything) == len(set(everything))
    assert all(issubclass(layer, layers.Layer) for layer in everything)


LISTS = sorted(
    name
    for name, value in vars(precision_lists).items()
    if name.isupper() and isinstance(value, tuple | frozenset)
)


def test_the_documented_lists_are_there_under_their_name():
    for name in ("ALLOW", "DENY", "FOLLOW", "INSIDE"):
        assert getattr(keras_mp.lists, name) is getattr(precision_lists, name)


@pytest.mark.parametrize("name", LISTS)
def test_every_entry_names_its_source(name):
    entries = getattr(precision_lists, name)
    assert entries
    for entry in entries:
        assert isinstance(precision_lists.SOURCES[entry], precision_lists.Source)


def test_operations_that_tensorflow_denies_are_on_the_list():
    """Its list as in ``auto_mixed_precision_lists.h``, but for saving and losses."""
    denied = {"Exp", "Expm1", "L2Loss", "Mean", "Pow", "Sum"}
    assert denied <= precision_lists.FLOAT32_OPERATIONS
    of_tensorflow = {
        entry
        for entry in precision_lists.FLOAT32_OPERATIONS
        if precision_lists.SOURCES[entry] is precision_lists.Source.TENSORFLOW
    }
    assert of_tensorflow == denied
