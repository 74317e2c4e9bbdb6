"""What a plan replaces, who divides, and that a bad step changes nothing."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.gradients import RUNS
from support.training import (
    INNER,
    SGD,
    SHAPES,
    Adam,
    built,
    gradients,
    operations,
    train,
    variables,
)

import keras_mp
from keras_mp import fused
from keras_mp.fused import plan


def bad_steps():
    """Return each optimizer in each mode, with two of four kinds of variables.

    Both shapes and both ways to skip are among them, combined the other way in turns.
    """
    pairs = itertools.product(INNER, RUNS)
    return [
        pytest.param(name, mode, shapes, way, id=f"{name}-{mode}-{kind}-{way}")
        for place, (name, mode) in enumerate(pairs)
        for kind, shapes, way in zip(
            ("all", "small"), (SHAPES, SHAPES[:3]), _in_turn(place), strict=True
        )
    ]


def _in_turn(place):
    return ("masks", "branches") if place % 2 else ("branches", "masks")


@pytest.mark.parametrize(("name", "mode", "shapes", "way"), bad_steps())
def test_a_bad_step_changes_nothing(name, mode, shapes, way, monkeypatch):
    monkeypatch.setattr(plan, "MANY", {"masks": 1, "branches": 100}[way])
    optimizer, weights = built(INNER[name](), shapes)
    step = RUNS[mode](lambda *grads: optimizer.apply(grads))
    step(*map(tf.constant, gradients(0, shapes)))
    held = weights + optimizer.inner_optimizer.variables
    before = [variable.numpy() for variable in held]
    for skipped, bad in enumerate((np.inf, np.nan), 1):
        grads = gradients(1, shapes)
        grads[-2].flat[1] = bad
        step(*map(tf.constant, grads))
        for variable, value in zip(held, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
        assert optimizer.stats()["skipped"] == skipped


@pytest.mark.parametrize("mode", RUNS)
def test_a_bad_step_does_not_apply_a_constraint(mode):
    """Even a gradient of zero would: the start is outside of it."""
    weight = keras.Variable(np.full((3, 4), 5.0, "float32"))
    weight.constraint = keras.constraints.MaxNorm(1.0)
    optimizer = keras_mp.LossScaleOptimizer(SGD(0.1))
    optimizer.build([weight])
    optimizer.scale_loss(0.0)
    step = RUNS[mode](lambda grad: optimizer.apply([grad]))
    step(tf.fill((3, 4), np.inf))
    np.testing.assert_array_equal(weight, np.full((3, 4), 5.0))
    assert optimizer.iterations.numpy() == 0
    step(tf.zeros((3, 4)))
    assert weight.numpy().max() < 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_masked_rows_change_nothing_either(jit_compile, monkeypatch):
    monkeypatch.setattr(plan, "MANY", 0)
    optimizer, (table,) = built(SGD(0.1), [(9, 4)])

    @tf.function(jit_compile=jit_compile)
    def step(values):
        rows = tf.IndexedSlices(values, tf.constant([1, 3]), tf.constant([9, 4]))
        optimizer.apply([rows])

    before = table.numpy()
    step(tf.constant(np.inf, shape=(2, 4)))
    np.testing.assert_array_equal(table.numpy(), before)
    assert optimizer.iterations.numpy() == 0
    step(tf.ones((2, 4)))
    assert (table.numpy() != before).any(axis=1).tolist() == [
        row in (1, 3) for row in range(9)
    ]
    assert optimizer.iterations.numpy() == 1


@pytest.mark.parametrize(
    "inner, expected",
    [
        (lambda: SGD(0.1), True),
        (lambda: keras.optimizers.RMSprop(0.1), True),
        (lambda: SGD(0.1, clipnorm=1.0), False),
        (lambda: keras.optimizers.Lamb(0.1), False),
    ],
    ids=["known", "elementwise", "clipped", "other"],
)
def test_who_divides_by_the_scale(inner, expected):
    inner = inner()
    inner.build(variables())
    assert fused.Plan(inner, keras.Variable(8.0), [], []).divides == expected


@pytest.mark.internals
@pytest.mark.parametrize("shape, branches", [((3, 4), 0), ((130, 70), 1)])
def test_small_variables_need_no_branch_in_xla(shape, branches):
    optimizer, _ = built(Adam(0.1), [shape])
    done = operations(optimizer, [tf.ones(shape)], jit_compile=True)
    assert done.count("If") == branches


@pytest.mark.internals
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_enters_a_branch_of_xla_is_narrow(dtype):
    optimizer, _ = built(Adam(0.1), [(130, 70)])

    @tf.function(jit_compile=True)
    def step(narrow):
        optimizer.apply([tf.cast(narrow, "float32")])

    graph = step.get_concrete_function(tf.ones((130, 70), dtype)).graph.as_graph_def()
    (branch,) = (
        function
        for function in graph.library.function
        if any(node.op == "AssignSubVariableOp" for node in function.node_def)
    )
    entering = [argument.type for argument in branch.signature.input_arg]
    assert tf.as_dtype(dtype).as_datatype_enum in entering


def test_an_own_update_step_is_kept():
    class Own(SGD):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(tf.sign(gradient))

    optimizer, (weight,) = built(Own(0.1), [(2,)])
    weight.assign([0.0, 2.0])
    optimizer.apply([tf.constant([3.0, -5.0])])
    np.testing.assert_array_equal(weight.numpy(), [-1.0, 3.0])


def test_the_optimizer_is_as_it_was_afterwards():
    inner = Adam(0.1)
    inner.build(variables())
    before = set(vars(inner))
    with pytest.raises(RuntimeError, match="in the middle"):
        with fused.Plan(inner, None, [], []).in_effect():
            assert set(vars(inner)) > before
            raise RuntimeError("in the middle")
    assert set(vars(inner)) == before


def test_parts_of_a_multi_optimizer_are_replaced_one_by_one():
    def inner():
        rules = {".*[05]": SGD(0.1)}  # a small and a large one
        by_path = keras.optimizers.OptimizerMap(Adam(0.1), rules)
        return keras.optimizers.MultiOptimizer(by_path)

    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    ours, bare = train(inner, "graph"), train(inner, "graph", scale=None)
    for a, b in zip(ours, bare, strict=True):
        # As in test_updates_are_those_of_keras.
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=6e-5, atol=3e-5)
