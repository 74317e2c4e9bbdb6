"""Gradient arithmetic against NumPy: dense, sparse, None and empty gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.graphs import needed_for

from keras_mp import numerics

FLOATS = ["float16", "bfloat16", "float32"]

RUNS = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


def sparse(values, dtype="float32"):
    """Return a gradient for rows 3 and 1 of a variable of five rows."""
    return tf.IndexedSlices(
        tf.constant(values, dtype), tf.constant([3, 1]), tf.constant([5, 2])
    )


GOOD_ROWS = [[1.0, -2.0], [3.0, 4.0]]


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


def test_stacks_hold_every_part_once():
    parts = [
        *[tf.fill((30, 40), float(number)) for number in range(9)],
        tf.ones((30, 40), "float64"),
        tf.ones((300, 300)),
        tf.ones((300, 300)),
        tf.zeros((0, 3)),
        tf.zeros((0, 3)),
        tf.constant(5.0),
    ]
    found = numerics.stacks(parts)
    places = [place for places, _ in found for place in places]
    assert sorted(places) == list(range(len(parts)))
    for places, stack in found:
        assert stack.dtype == parts[places[0]].dtype
        single = len(places) == 1
        expected = [parts[place] for place in places]
        np.testing.assert_array_equal(stack, expected[0] if single else expected)
        assert single or tf.size(stack) < 2**13
    heights = [len(places) for places, _ in found]
    assert heights == [4, 5, 1, 1, 1, 1, 1, 1]  # 6 of 1200 numbers would be possible


@pytest.mark.parametrize("count", range(4, 40))
def test_no_stack_is_of_a_single_tensor(count):
    # Plain SGD would update that one in a branch, which the others do without.
    found = numerics.stacks([tf.ones((40, 50))] * count)
    assert all(2 <= len(places) <= 4 for places, _ in found)


def kinds_behind(operation):
    """Return the types of all operations that ``operation`` needs."""
    return [each.type for each in needed_for(operation)]


def test_small_casts_of_the_stacked_are_not_run():
    @tf.function
    def step(*narrow):
        return numerics.all_finite([tf.cast(part, "float32") for part in narrow])

    narrow = [tf.ones((4, 4), "bfloat16")] * 20
    graph = step.get_concrete_function(*narrow).graph
    (sum_of_all,) = [op for op in graph.get_operations() if op.type == "IsFinite"]
    assert kinds_behind(sum_of_all).count("Cast") == 1
    assert bool(step(*narrow))
    assert not bool(step(*narrow[1:], narrow[0] * np.inf))


MIXED = [
    *[tf.fill((4, 4), float(number)) for number in range(9)],
    *[tf.fill((4, 4), number + 0.5) for number in range(5)],
    tf.constant(5.0),
    tf.ones((300, 300)),
    tf.zeros((0, 3)),
]


def test_stacks_are_mapped_as_each_gradient_would_be(run):
    seen = []

    def double(gradients):
        seen.extend(gradients)
        return [numerics.map_values(lambda v: v * 2, each) for each in gradients]

    @run
    def mapped(rows):
        narrow = [tf.cast(part, "bfloat16") for part in MIXED[:9]]
        parts = [tf.cast(part, "float32") for part in narrow] + MIXED[9:]
        return numerics.map_stacks(double, [*parts, *[rows] * 5])

    *dense, last = mapped(sparse(GOOD_ROWS))[:-4]
    assert len(seen) <= 2 + 3 + 5
    assert {each.dtype for each in seen} == {tf.float32}
    for result, part in zip(dense, MIXED, strict=True):
        assert result.dtype == tf.float32
        np.testing.assert_array_equal(result, part * 2)
    np.testing.assert_array_equal(last.values, np.array(GOOD_ROWS) * 2)
    np.testing.assert_array_equal(last.indices, [3, 1])


def test_what_was_stacked_is_not_stacked_again():
    @tf.function
    def step(*parts):
        # Of both kinds of one shape: each has its own stack.
        cast = [tf.cast(part, "float32") for part in parts[:6]]
        mapped = numerics.map_stacks(lambda stacks: stacks, [*cast, *parts[6:]])
        return numerics.all_finite(mapped)

    parts = [tf.ones((4, 4), "bfloat16")] * 6 + [tf.ones((4, 4))] * 6
    graph = step.get_concrete_function(*parts).graph
    (sum_of_all,) = [op for op in graph.get_operations() if op.type == "IsFinite"]
    kinds = kinds_behind(sum_of_all)
    assert kinds.count("Unpack") == 0
    assert kinds.count("Pack") == 2 + 1  # the last is of the sums
    assert bool(step(*parts))
    assert not bool(step(*parts[:-1], parts[-1] * np.nan))


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
    monkeypatch.setattr(numerics, "LARGE", 90_000)
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


def test_gradients_of_an_embedding_are_the_sparse_ones_meant():
    table = tf.Variable(tf.zeros([5, 2]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [3, 3])) * 2.0
    gradient = tape.gradient(loss, table)
    assert numerics.is_sparse(gradient)
    assert not numerics.is_sparse(tf.ones(2))
    parts = numerics.dense_parts([None, gradient, tf.ones(3)])
    assert [part.shape for part in parts] == [(2, 2), (3,)]


def test_cast_floats_touches_float_tensors_only(run):
    integers, flags = tf.constant([1, 2]), tf.constant([True, False])

    def cast(low, high):
        return numerics.cast_floats(
            {"a": [low, integers], "b": (flags, None), "c": {"d": high}}, "float16"
        )

    result = run(cast)(tf.constant([1.5], "bfloat16"), tf.constant([[2.5]]))
    assert result["a"][0].dtype == result["c"]["d"].dtype == tf.float16
    assert result["a"][1].dtype == tf.int32
    assert result["b"][0].dtype == tf.bool
    assert result["b"][1] is None
    assert isinstance(result["b"], tuple)
    np.testing.assert_array_equal(result["a"][0], [1.5])
    np.testing.assert_array_equal(result["c"]["d"], [[2.5]])


def test_cast_floats_leaves_alone_what_is_no_tensor():
    array = np.ones(2, "float32")
    structure = [array, 1.5, 3, True, "text", None]
    assert numerics.cast_floats(structure, "float16") == structure
    assert numerics.cast_floats(None, "float16") is None
    assert numerics.cast_floats([], "float16") == []
    tensor = tf.constant(3)
    assert numerics.cast_floats(tensor, "float16") is tensor


def test_cast_floats_casts_symbolic_tensors():
    structure = {"x": keras.Input((2,)), "ids": keras.Input((2,), dtype="int32")}
    result = numerics.cast_floats(structure, "bfloat16")
    assert result["x"].dtype == "bfloat16"
    assert result["x"].shape == (None, 2)
    assert result["ids"] is structure["ids"]


def test_is_float():
    floats = [
        tf.constant(1.0),
        tf.constant(1.0, "bfloat16"),
        keras.KerasTensor((2,), dtype="float16"),
    ]
    others = [
        tf.constant(1),
        tf.constant(True),
        keras.KerasTensor((2,), dtype="int32"),
        np.ones(2),
        1.0,
        None,
    ]
    assert [numerics.is_float(tensor) for tensor in floats] == [True] * 3
    assert [numerics.is_float(tensor) for tensor in others] == [False] * 6
