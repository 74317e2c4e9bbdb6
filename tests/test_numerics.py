"""Finite checks and unscaling against NumPy: dense, sparse, None and empty."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.gradients import GOOD_ROWS, RUNS, sparse

from keras_mp import numerics, stacks

FLOATS = ["float16", "bfloat16", "float32"]


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
def test_all_finite_sees_one_bad_number(run, dtype, bad):
    numbers = np.linspace(-2, 2, 12).reshape(3, 4)
    if bad is not None:
        numbers[1, 2] = bad
    gradients = [tf.ones(2, dtype), None, tf.constant(numbers, dtype)]
    finite = run(numerics.all_finite)(gradients)
    assert finite.dtype == tf.bool
    assert finite.shape == ()
    assert bool(finite) == (bad is None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
def test_all_finite_looks_into_sparse_gradients(run, bad):
    rows = np.array(GOOD_ROWS)
    if bad is not None:
        rows[1, 0] = bad
    gradients = [None, sparse(rows), tf.constant(1.0)]
    assert bool(run(numerics.all_finite)(gradients)) == (bad is None)


@pytest.mark.internals
def test_small_gradients_are_not_added_up():
    # Grappler would make an AddN with a temporary variable of it, which failed on two
    # replicas: "ALREADY_EXISTS: Resource ... tmp_var".
    specs = [tf.TensorSpec((4, 4))] * 20 + [tf.TensorSpec((300, 300))] * 3
    check = tf.function(lambda *gradients: numerics.all_finite(gradients))
    kinds = [
        op.type for op in check.get_concrete_function(*specs).graph.get_operations()
    ]
    assert not {"Add", "AddV2", "AddN"} & set(kinds)
    assert kinds.count("Sum") == 1 + 3 + 1  # the small ones, the large ones, all


def test_all_finite_sees_what_a_cast_made_infinite(run):
    @run
    def judge(wide):
        return numerics.all_finite([tf.cast(wide, "float16")])

    assert not bool(judge(tf.constant([1.0, 1e30], "bfloat16")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
def test_all_finite_looks_at_a_large_gradient_before_its_cast(
    run, dtype, bad, monkeypatch
):
    monkeypatch.setattr(stacks, "LARGE", 90_000)
    # Their sum in float16 would overflow.
    numbers = np.full((300, 300), 3e4, "float32")
    if bad is not None:
        numbers[17, 299] = bad

    @run
    def judge(narrow):
        return numerics.all_finite([tf.cast(narrow, "float32")])

    assert bool(judge(tf.constant(numbers, dtype))) == (bad is None)


@pytest.mark.parametrize("shape", [(2, 2), (300, 300)])
def test_finite_numbers_with_an_overflowing_sum_are_told_apart(shape):
    gradients = [tf.fill(shape, 3e38), tf.fill(shape, 3e38)]
    assert bool(numerics.every_finite(gradients))
    assert not bool(numerics.all_finite(gradients))  # as its docstring says
    assert bool(numerics.all_finite([tf.fill(shape, 1e30)]))
    bad = [tf.fill(shape, 3e38), tf.fill(shape, np.nan)]
    assert not bool(numerics.every_finite(bad))


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_tensor_is_judged_by_itself_in_a_stack_or_alone(run, dtype):
    numbers = np.ones((9, 3, 2))
    numbers[2, 1, 0], numbers[7, 0, 1] = np.inf, np.nan
    alone = [tf.constant(1.0), tf.zeros((0, 3)), tf.constant([np.nan, 1.0]), tf.ones(9)]

    def judged(numbers):
        parts = [*tf.unstack(numbers), *alone]
        return tf.stack(numerics.each_finite(stacks.small_ones_stacked(parts)))

    finite = run(judged)(tf.constant(numbers, dtype))
    assert np.flatnonzero(~finite.numpy()).tolist() == [2, 7, 11]


@pytest.mark.parametrize("gradients", [[], [None], [None, None]], ids=str)
def test_nothing_is_finite_and_of_size_zero(run, gradients):
    assert bool(run(lambda: numerics.all_finite(gradients))())
    assert bool(run(lambda: numerics.every_finite(gradients))())
    assert float(run(lambda: numerics.largest(gradients))()) == 0.0


def test_empty_tensors_count_for_nothing(run):
    no_rows = tf.IndexedSlices(
        tf.zeros([0, 2]), tf.zeros([0], "int32"), tf.constant([5, 2])
    )
    gradients = [tf.zeros([0, 3]), no_rows]
    assert bool(run(numerics.all_finite)(gradients))
    assert float(run(numerics.largest)(gradients)) == 0.0
    gradients.append(tf.constant([-3.0, 2.0]))
    assert float(run(numerics.largest)(gradients)) == 3.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_largest_is_the_largest_absolute_value_in_float32(run, dtype):
    # All are exact in float16 and bfloat16, so the result is exact.
    gradients = [
        tf.constant([1.0, -7.0], dtype),
        None,
        sparse([[0.5, 2.0], [-96.0, 0.0]], dtype),
        tf.constant(12.0, dtype),
    ]
    result = run(numerics.largest)(gradients)
    assert result.dtype == tf.float32
    assert float(result) == 96.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_norm_is_that_of_all_numbers(run, dtype):
    numbers = np.linspace(-2, 2, 24).reshape(6, 2, 2).astype("float32")
    gradients = [
        None,
        sparse(GOOD_ROWS, dtype),
        *tf.unstack(tf.constant(numbers, dtype)),
    ]
    every = np.concatenate([np.ravel(GOOD_ROWS), numbers.ravel()])
    result = run(numerics.norm)(gradients)
    assert result.dtype == tf.float32
    # The numbers are rounded to 8 bits at the least, their squares twice as much.
    np.testing.assert_allclose(result, np.linalg.norm(every), rtol=2**-7)
    assert float(run(numerics.norm)([tf.constant([1.0, np.inf])])) == np.inf
    assert float(run(lambda: numerics.norm([None]))()) == 0.0


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_largest_is_inf_where_a_gradient_is(run, infinite):
    gradients = [tf.constant([1.0, infinite]), sparse(GOOD_ROWS)]
    assert float(run(numerics.largest)(gradients)) == np.inf


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-3, 1000.0, 2.0**15])
def test_unscale_divides_in_the_gradients_dtype(run, dtype, scale):
    numbers = np.array([0.0, 0.25, -768.0, 24.0, 61440.0], "float32")
    gradient = tf.constant(numbers, dtype)
    result = run(numerics.unscale)(gradient, tf.constant(scale))
    assert result.dtype == dtype
    expected = tf.cast(numbers.astype("float64") / scale, dtype)
    # One rounding to the dtype: its machine epsilon; subnormals: float16's smallest.
    epsilon = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}[dtype]
    np.testing.assert_allclose(
        tf.cast(result, "float64"),
        tf.cast(expected, "float64"),
        rtol=epsilon,
        atol=2.0**-24,
    )


@pytest.mark.parametrize("scale", [2.0**16, 2.0**20, 2.0**24])
def test_unscale_takes_scales_that_are_inf_in_float16(run, scale):
    gradient = tf.constant([512.0, -65504.0], "float16")
    result = run(numerics.unscale)(gradient, tf.constant(scale))
    expected = (np.array([512.0, -65504.0]) / scale).astype("float16")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_unscale_keeps_sparse_gradients_sparse(run, dtype):
    result = run(numerics.unscale)(sparse(GOOD_ROWS, dtype), tf.constant(4.0))
    assert isinstance(result, tf.IndexedSlices)
    assert result.values.dtype == dtype
    np.testing.assert_array_equal(
        tf.cast(result.values, "float32"), np.array(GOOD_ROWS) / 4
    )
    np.testing.assert_array_equal(result.indices, [3, 1])
    np.testing.assert_array_equal(result.dense_shape, [5, 2])


def test_unscale_leaves_none_and_reads_variables():
    assert numerics.unscale(None, tf.constant(2.0)) is None
    scale = keras.Variable(8.0)
    assert float(numerics.unscale(tf.constant(4.0), scale)) == 0.5


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_unscale_keeps_what_is_not_finite(run, bad):
    result = run(numerics.unscale)(tf.constant([bad, 2.0]), tf.constant(2.0))
    np.testing.assert_array_equal(result, [bad, 1.0])
