"""Counts, extremes and exponents of a tensor, beside NumPy; and its error."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mp.recording.formats import FLOAT32, FORMATS, coarsest
from keras_mp.recording.measures import (
    Measures,
    compared,
    measured,
    merged,
    read,
    read_error,
    sampled,
)

NUMBERS = st.floats(width=32, allow_subnormal=False)


def of(values):
    return read(measured(tf.constant(values)))


@settings(max_examples=50, deadline=None)
@given(st.lists(NUMBERS, max_size=40))
def test_counts_and_extremes_are_those_of_numpy(values):
    values = np.array(values, "float32")
    found = of(values)
    magnitudes = np.abs(values[np.isfinite(values)])
    positive = magnitudes[magnitudes > 0]
    assert found.size == len(values)
    assert found.zeros == (values == 0).sum()
    assert found.nans == np.isnan(values).sum()
    assert found.infs == np.isinf(values).sum()
    assert found.largest == (magnitudes.max() if len(magnitudes) else 0)
    if len(positive):
        assert found.smallest == positive.min()
    else:
        assert math.isnan(found.smallest)
    exponents, counts = np.unique(np.frexp(positive)[1] - 1, return_counts=True)
    assert found.exponents == dict(zip(exponents, counts, strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_shares_are_what_a_cast_does(name):
    form = FORMATS[name]
    # One number for each exponent, not at its edge, where a tie decides. TensorFlow
    # treats subnormal numbers of float32 as 0.
    values = 1.5 * 2.0 ** np.arange(-126, 127, dtype="float32")
    with np.errstate(over="ignore"):
        cast = values.astype(name).astype("float32")
    found = of(values)
    assert found.below(form) == np.mean(cast == 0)
    # A float8 may have no inf: what is too large becomes NaN.
    assert found.beyond(form) == np.mean(~np.isfinite(cast))


def test_shares_at_a_scale():
    found = of([1.0, 2.0**-30, 2.0**20, 0.0])
    float16 = FORMATS["float16"]
    assert found.below(float16) == found.beyond(float16) == 1 / 3
    assert found.below(float16, scale=2.0**6) == 0.0
    assert found.beyond(float16, scale=2.0**-6) == 0.0


FLOATS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sample_counts_some_and_sees_the_largest_of_all(dtype):
    values = np.ones(1000, "float32")
    values[1], values[3], values[10] = -7.0, 0.5, 0.25
    found = read(sampled(tf.cast(values, dtype), 100))
    assert found.size == 100 and found.finite
    assert (found.smallest, found.largest) == (0.25, 7.0)
    assert found.exponents == {-2: 1, 0: 99}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan, -math.nan])
def test_a_sample_sees_inf_and_nan_that_it_does_not_count(dtype, special):
    values = np.ones(1000, "float32")
    values[1], values[3] = 7.0, special
    found = read(sampled(tf.cast(values, dtype), 100))
    assert not found.finite
    assert found.largest == 1.0  # of the numbers that were counted


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sample_of_few_numbers_is_all_of_them(dtype):
    values = tf.constant([1.0, -3.0, 0.0, math.nan, math.inf], dtype)
    assert read(sampled(values, 100)) == read(measured(values))
    assert read(sampled(values, 5)).size == 5
    assert read(sampled(values, 3)).size == 3
    none = read(sampled(tf.zeros([0, 4], dtype), 100))
    assert none.size == 0 and none.finite and none.largest == 0


def test_merged_is_the_measures_of_both_together():
    one, other = [1.0, -3.0, 0.0, math.nan], [0.25, math.inf]
    assert merged([of(one), Measures(), of(other)]) == of(one + other)
    assert merged([]) == Measures() or math.isnan(merged([]).smallest)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_errors_of_a_cast(dtype):
    exact = tf.constant(np.random.default_rng(0).normal(size=1000), tf.float32)
    form = FORMATS[dtype]
    error = read_error(compared(tf.cast(exact, dtype), exact), form)
    assert 0.1 < error.ulps < 0.5  # rounded to nearest
    assert error.relative == error.ulps * form.epsilon
    assert error.cosine == pytest.approx(1.0, abs=form.epsilon**2)
    assert error.vanished == 0.0


def test_errors_of_what_vanished_turned_and_is_equal():
    exact = tf.constant([3.0, 4.0, 0.0])
    error = read_error(compared(tf.constant([3.0, 0.0, 0.0]), exact), FLOAT32)
    assert (error.relative, error.cosine, error.vanished) == (0.8, 0.6, 0.5)
    error = read_error(compared(-exact, exact), FLOAT32)
    assert (error.relative, error.cosine, error.vanished) == (2.0, -1.0, 0.0)
    assert read_error(compared(exact, exact), FLOAT32) == (0.0, 1.0, 0.0, 0.0)
    assert math.isnan(read_error(compared(exact * math.nan, exact), FLOAT32).relative)


def test_the_coarsest_format_has_the_fewest_digits():
    assert coarsest(["float32", "float16", "bfloat16"]).name == "bfloat16"
    assert coarsest(["float32", ""]) == FLOAT32
