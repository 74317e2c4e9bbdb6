"""Gradients beside float32's: faults by the name of their layer, nothing changed."""

import math
import warnings

import keras
import pytest
from support import watched
from support.watched import Coarse, data, fit

import keras_mp
from keras_mp.callbacks import ShadowCheck
from keras_mp.scaling import StaticLossScale


def compiled(policy="mixed_float16", faulty=(), **options):
    names = "block_1", "block_2", "block_3"
    faults = [Coarse if name in faulty else None for name in names]
    return watched.compiled(policy, faults=faults, **options)


WITH_WEIGHTS = [
    "net/first",
    "net/block_1/ffn",
    "net/block_1/norm",
    "net/block_2/ffn",
    "net/block_2/norm",
    "net/block_3/ffn",
    "net/block_3/norm",
    "net/head",
]


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_both_passes_drop_the_same_units(policy):
    check = ShadowCheck(1)
    fit(compiled(policy), [check])
    for _, layers in check.history:
        # Other dropout masks would make these unrelated.
        assert all(each.error.cosine > 0.98 for each in layers.values())
        assert any(each.error.relative > 0 for each in layers.values())


@pytest.mark.long
def test_float32_differs_from_itself_in_nothing():
    check = ShadowCheck(1)
    fit(compiled("float32"), [check], epochs=1)
    for _, layers in check.history:
        assert all(each.error == (0.0, 1.0, 0.0, 0.0) for each in layers.values())


@pytest.mark.long
def test_shares_are_of_the_whole_gradient():
    check = ShadowCheck(1)
    fit(compiled(), [check], epochs=1)
    shares = [each.share for each in check.history[0].layers.values()]
    assert math.hypot(*shares) == pytest.approx(1.0)


def messages(model, callbacks, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, callbacks, **options)
    return [str(each.message) for each in caught if "Shadow" in str(each.message)]


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["block_1", "block_2", "block_3"])
def test_a_fault_is_named_by_the_nearest_layer_that_it_reaches(policy, name):
    # What comes before the fault gets its gradient; what comes after is sound.
    check = ShadowCheck(1, limit=0.9)
    found = messages(compiled(policy, faulty=[name]), [check], rows=4, epochs=1)
    paths = [message.split()[3] for message in found]
    assert f"net/{name}/ffn" in paths
    reached = WITH_WEIGHTS[: WITH_WEIGHTS.index(f"net/{name}/ffn") + 1]
    assert set(paths) <= set(reached)
    ffn = check.history[0].layers[f"net/{name}/ffn"].error
    message = next(each for each in found if f"net/{name}/ffn " in each)
    assert f"cosine {ffn.cosine:.2f} to float32's (limit 0.9)" in message


@pytest.mark.long
def test_each_layer_is_warned_of_once_a_fit():
    model, check = compiled(faulty=["block_2"]), ShadowCheck(1)
    found = messages(model, [check], epochs=4)
    paths = [message.split()[3] for message in found]
    assert "net/block_2/ffn" in paths and len(paths) == len(set(paths))


@pytest.mark.long
def test_a_limit_of_less_warns_of_less():
    assert messages(compiled(faulty=["block_2"]), [ShadowCheck(1, limit=-0.9)]) == []


def test_a_gradient_that_is_0_but_for_roundings_is_not_judged():
    class Shift(keras.layers.Layer):
        def build(self, shape):
            self.shift = self.add_weight(shape=(shape[-1],), initializer="zeros")

        def call(self, x):
            return x + self.shift

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(16, use_bias=False, name="dense"),
        Shift(name="shift"),  # a bias that the normalization takes away again
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(2, name="head"),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers], name="net")
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16")
    check = ShadowCheck(1)
    assert messages(model, [check]) == []
    shifts = [each.layers["net/shift"] for each in check.history]
    assert max(each.share for each in shifts) < 1e-4
    assert min(each.error.cosine for each in shifts) < 0.9


@pytest.mark.long
def test_a_step_that_overflows_is_not_judged():
    model = compiled(scaling=StaticLossScale(2.0**24))
    check = ShadowCheck(1)
    assert messages(model, [check]) == []
    ffn = check.history[0].layers["net/block_1/ffn"]
    assert math.isnan(ffn.error.cosine) and ffn.share > 0


def test_rows_and_keep():
    check = ShadowCheck(2, rows=2, keep=3)
    fit(compiled(), [check])
    assert [each.step for each in check.history] == [14, 16, 18]


def test_an_adapted_normalization_is_left_as_it_was():
    normalization = keras.layers.Normalization()
    normalization.adapt(data()[0] * 1e3)
    model = keras.Sequential([keras.Input((8,)), normalization, keras.layers.Dense(2)])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16")
    mean = normalization.mean
    fit(model, [ShadowCheck(1)], epochs=1)
    assert normalization.mean is mean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": -1}, r"ShadowCheck\(every=-1\)"),
        ({"limit": 1.0}, r"ShadowCheck\(limit=1.0\): .* below 1, such as 0.9"),
        ({"rows": 0}, r"ShadowCheck\(rows=0\)"),
        ({"keep": 0}, r"ShadowCheck\(keep=0\)"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ShadowCheck(**arguments)
