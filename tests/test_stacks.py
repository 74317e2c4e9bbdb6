"""Small tensors are stacked, and each is there once."""

import numpy as np
import pytest
import tensorflow as tf
from support.gradients import GOOD_ROWS, RUNS, sparse
from support.graphs import needed_for

from keras_mp import kinds, numerics, stacks


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


@pytest.mark.internals
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
    found = stacks.small_ones_stacked(parts)
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


@pytest.mark.internals
@pytest.mark.parametrize("count", range(4, 40))
def test_no_stack_is_of_a_single_tensor(count):
    # Plain SGD would update that one in a branch, which the others do without.
    found = stacks.small_ones_stacked([tf.ones((40, 50))] * count)
    assert all(2 <= len(places) <= 4 for places, _ in found)


def kinds_behind(operation):
    """Return the types of all operations that ``operation`` needs."""
    return [each.type for each in needed_for(operation)]


@pytest.mark.internals
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
        return [kinds.map_values(lambda v: v * 2, each) for each in gradients]

    @run
    def mapped(rows):
        narrow = [tf.cast(part, "bfloat16") for part in MIXED[:9]]
        parts = [tf.cast(part, "float32") for part in narrow] + MIXED[9:]
        return stacks.map_stacked(double, [*parts, *[rows] * 5])

    *dense, last = mapped(sparse(GOOD_ROWS))[:-4]
    assert len(seen) <= 2 + 3 + 5
    assert {each.dtype for each in seen} == {tf.float32}
    for result, part in zip(dense, MIXED, strict=True):
        assert result.dtype == tf.float32
        np.testing.assert_array_equal(result, part * 2)
    np.testing.assert_array_equal(last.values, np.array(GOOD_ROWS) * 2)
    np.testing.assert_array_equal(last.indices, [3, 1])


@pytest.mark.internals
def test_what_was_stacked_is_not_stacked_again():
    @tf.function
    def step(*parts):
        # Of both kinds of one shape: each has its own stack.
        cast = [tf.cast(part, "float32") for part in parts[:6]]
        mapped = stacks.map_stacked(lambda piles: piles, [*cast, *parts[6:]])
        return numerics.all_finite(mapped)

    parts = [tf.ones((4, 4), "bfloat16")] * 6 + [tf.ones((4, 4))] * 6
    graph = step.get_concrete_function(*parts).graph
    (sum_of_all,) = [op for op in graph.get_operations() if op.type == "IsFinite"]
    kinds = kinds_behind(sum_of_all)
    assert kinds.count("Unpack") == 0
    assert kinds.count("Pack") == 2 + 1  # the last is of the sums
    assert bool(step(*parts))
    assert not bool(step(*parts[:-1], parts[-1] * np.nan))
