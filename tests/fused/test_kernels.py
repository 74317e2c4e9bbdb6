"""Updates of SGD and Adam by kernels: Keras's results in fewer operations."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from support.training import INNER, SGD, Adam, built, operations, train

from keras_mp import stacks
from keras_mp.fused import plan


@functools.cache
def trained_by_keras(name, mode, dtype):
    return train(INNER[name], mode, dtype, scale=None)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("name", INNER)
def test_updates_are_those_of_keras(name, mode, dtype):
    ours = train(INNER[name], mode, dtype)
    # A graph joins constant factors, and so rounds in another order. Here only Keras's
    # operations on a large variable are one; others are done as in eager execution.
    eager = trained_by_keras(name, "eager", dtype)
    in_graph = name == "other" and mode == "graph"
    graph = trained_by_keras(name, mode, dtype) if in_graph else eager
    # Adam's 1 - beta_2 is taken in float32 here, and in Python by Keras: 5e-5 of it, so
    # 2.5e-5 of an update, of which there are four of 0.1. Other dtypes are Keras's.
    rounding = {"float32": 3e-5, "float64": 1e-12, "bfloat16": 1e-6}[dtype]
    for a, b, c in zip(ours, eager, graph, strict=True):
        bare = c if tuple(a.shape) == (130, 70) else b
        a, b = (np.asarray(v.numpy(), "float64") for v in (a, bare))
        np.testing.assert_allclose(a, b, rtol=2 * rounding, atol=rounding / 10)


@pytest.mark.internals
@pytest.mark.parametrize(
    "inner, kernel",
    [
        (lambda: SGD(0.1), "ResourceApplyGradientDescent"),
        (lambda: SGD(0.1, clipvalue=9.0), "ResourceApplyGradientDescent"),
        (lambda: SGD(0.1, momentum=0.9), "ResourceApplyKerasMomentum"),
        (lambda: Adam(0.1), "ResourceApplyAdam"),
        (lambda: Adam(0.1, amsgrad=True), "ResourceApplyAdamWithAmsgrad"),
    ],
)
def test_a_large_variable_has_one_kernel_and_no_other_pass(inner, kernel):
    shape = (300, 300)
    optimizer, _ = built(inner(), [shape])
    done = operations(optimizer, [tf.ones(shape)])
    assert done.count(kernel) == 1
    # In XLA, where it is Keras's own, there is none.
    assert kernel not in operations(optimizer, [tf.ones(shape)], jit_compile=True)


@pytest.mark.internals
@pytest.mark.cpu
@pytest.mark.parametrize(
    # float16 is judged as float32, and so has been cast already.
    "dtype, large, compiled",
    [
        ("float16", 90_000, False),
        ("bfloat16", 90_000, True),
        ("bfloat16", 90_001, False),
    ],
)
def test_a_large_narrow_gradient_is_cast_where_it_is_read(
    dtype, large, compiled, monkeypatch
):
    monkeypatch.setattr(stacks, "LARGE", large)
    shape = (300, 300)
    optimizer, (weight,) = built(SGD(0.1), [shape])
    before = weight.numpy()
    narrow = tf.cast(tf.fill(shape, 2.0**15), dtype)

    @tf.function
    def step(narrow):
        optimizer.apply([tf.cast(narrow, "float32")])

    step(narrow)
    np.testing.assert_allclose(weight.numpy(), before - 0.1, atol=1e-7)
    library = step.get_concrete_function(narrow).graph.as_graph_def().library
    kinds = [node.op for f in library.function for node in f.node_def]
    assert compiled == any("_XlaMustCompile" in f.attr for f in library.function)
    assert ("ResourceApplyGradientDescent" in kinds) != compiled
    step(narrow * np.inf)
    assert optimizer.stats()["skipped"] == 1
    np.testing.assert_allclose(weight.numpy(), before - 0.1, atol=1e-7)


@pytest.mark.internals
@pytest.mark.cpu
def test_small_variables_of_adam_are_updated_together():
    few, many = [(3, 4)] * 4, [(3, 4)] * 20
    counts = []
    for shapes in (few, many):
        optimizer, _ = built(Adam(0.1), shapes)
        done = operations(optimizer, [tf.ones(shape) for shape in shapes])
        assert "ResourceApplyAdam" not in done
        counts.append({kind: done.count(kind) for kind in ("Mul", "Sqrt", "RealDiv")})
    assert counts[0] == counts[1]


@pytest.mark.internals
def test_too_few_small_variables_have_a_kernel_each():
    # Starting three takes less than a stack, a compiled formula and three sums.
    for optimizer, kernel in (
        (Adam(0.1), "ResourceApplyAdam"),
        (SGD(0.1), "ResourceApplyGradientDescent"),
    ):
        optimizer, _ = built(optimizer, [(3, 4)] * 3)
        done = operations(optimizer, [tf.ones((3, 4))] * 3)
        assert done.count(kernel) == 3
        assert "Unpack" not in done


@pytest.mark.internals
@pytest.mark.cpu
def test_many_small_variables_of_plain_sgd_are_updated_together():
    """The change of all is one product, and what it multiplies is what was judged."""
    counts = []
    for many in (plan.MANY, 2 * plan.MANY):
        shapes = [(3, 4)] * many
        optimizer, _ = built(SGD(0.1), shapes)
        done = operations(optimizer, [tf.ones(shape) for shape in shapes])
        counts.append({kind: done.count(kind) for kind in ("MulNoNan", "Unpack", "If")})
    assert counts[0] == counts[1] == {"MulNoNan": 1, "Unpack": 1, "If": 0}


@pytest.mark.internals
def test_fewer_small_variables_of_plain_sgd_have_a_kernel_each_in_a_branch():
    shapes = [(3, 4)] * (plan.MANY - 1)
    optimizer, _ = built(SGD(0.1), shapes)
    done = operations(optimizer, [tf.ones(shape) for shape in shapes])
    assert done.count("ResourceApplyGradientDescent") == len(shapes)
    assert "MulNoNan" not in done and done.count("If") == 1
