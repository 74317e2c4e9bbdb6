"""Keras's updates, compiled: the same results in fewer operations."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.training import (
    INNER,
    SGD,
    SHAPES,
    built,
    gradients,
    operations,
    train,
    variables,
)

import keras_mp
from keras_mp import stacks
from keras_mp.fused import compiled, plan

ELEMENTWISE = {cls.__name__: functools.partial(cls, 0.1) for cls in plan.ELEMENTWISE}


ELEMENTWISE["centered"] = lambda: keras.optimizers.RMSprop(0.1, 0.9, 0.9, centered=True)


ELEMENTWISE["clipped one"] = lambda: keras.optimizers.Lion(0.1, clipnorm=0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_compiled_updates_are_those_of_keras(name, dtype, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 36)
    ours = train(ELEMENTWISE[name], "graph", dtype)
    bare = train(ELEMENTWISE[name], "eager", dtype, scale=None)
    # Four updates of about 0.1, or of 1 divided by its own size, in another order of
    # operations: a few units in the last place.
    rounding = {"float32": 2e-6, "float64": 1e-12}[dtype]
    for a, b in zip(ours, bare, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=rounding, atol=rounding)


@pytest.mark.internals
@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(300, 300), (3, 300)])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_updates_of_large_variables_only_are_compiled(name, shape, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 90_000)
    optimizer, _ = built(ELEMENTWISE[name](), [shape])
    step = tf.function(lambda gradient: optimizer.apply([gradient]))
    graph = step.get_concrete_function(tf.ones(shape)).graph.as_graph_def()
    compiled = sum("_XlaMustCompile" in f.attr for f in graph.library.function)
    assert compiled == (1 if shape == (300, 300) else 0)


@pytest.mark.internals
@pytest.mark.parametrize("shape, calls", [((300, 300), 1), ((3, 4), 0)])
def test_keras_operations_on_a_large_variable_are_a_function(shape, calls):
    optimizer, _ = built(keras.optimizers.Lamb(0.1), [shape])
    done = operations(optimizer, [tf.ones(shape)])
    assert done.count("StatefulPartitionedCall") == calls


@pytest.mark.long
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_bad_step_compiles_to_no_change(name, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 36)
    optimizer, weights = built(ELEMENTWISE[name](), SHAPES)
    step = tf.function(lambda *grads: optimizer.apply(grads))
    step(*map(tf.constant, gradients(0)))
    held = weights + optimizer.inner_optimizer.variables
    before = [variable.numpy() for variable in held]
    grads = gradients(1)
    grads[-2].flat[1] = np.inf
    step(*map(tf.constant, grads))
    for variable, value in zip(held, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("large", [1, stacks.LARGE], ids=["compiled", "Keras's own"])
@pytest.mark.parametrize("rows", [None, 6], ids=["any number of rows", "6 rows"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "amsgrad", "clipped"])
def test_sparse_gradients_are_those_of_keras(name, rows, large, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", large)
    values = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    indices = np.array([7, 0, 3, 3, 1, 7], "int32")
    tables = []
    for scale in (1024.0, None):
        optimizer = INNER[name]()
        if scale:
            optimizer = keras_mp.LossScaleOptimizer(optimizer, initial_scale=scale)
        (table,) = variables([(9, 4)])
        optimizer.build([table])

        @tf.function(
            input_signature=[
                tf.TensorSpec([rows, 4], "float32"),
                tf.TensorSpec([rows], "int32"),
            ]
        )
        def step(values, indices, optimizer=optimizer, scale=scale):
            if scale:
                optimizer.scale_loss(0.0)
            slices = tf.IndexedSlices(
                values * (scale or 1.0), indices, tf.constant([9, 4])
            )
            optimizer.apply([slices])

        for taken in (6, 6) if rows else (6, 5, 1, 0):
            step(values[:taken], indices[:taken])
        tables.append(table.numpy())
    # XLA's power may differ in the last place: of 1 - beta_2**t, at first 0.001, that
    # is 6e-5, so 3e-5 of Adam's updates, which are of the size of 0.1.
    np.testing.assert_allclose(*tables, rtol=1e-6, atol=3e-6)


@pytest.mark.internals
def test_sparse_gradients_do_not_make_later_reads_copy(monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 36)
    optimizer, _ = built(SGD(0.1), [(9, 4)])

    def rows(values):
        return tf.IndexedSlices(values, tf.constant([1, 3]), tf.constant([9, 4]))

    apply = tf.function(lambda values: optimizer.apply([rows(values)]))
    graph = apply.get_concrete_function(tf.ones([2, 4])).graph.as_graph_def()
    called = [node.op for f in graph.library.function for node in f.node_def]
    compiled = [f for f in graph.library.function if "_XlaMustCompile" in f.attr]
    scattering = [
        f
        for f in graph.library.function
        if any(node.op.startswith("ResourceScatter") for node in f.node_def)
    ]
    assert any(op.startswith("ResourceScatter") for op in called)
    assert [f.signature.name for f in scattering] == [
        f.signature.name for f in compiled
    ]


@pytest.mark.parametrize("rows, size", [(0, 1), (1, 1), (2, 2), (3, 4), (65, 128)])
def test_rows_are_padded_with_zeros_to_a_power_of_two(rows, size):
    spec = [tf.TensorSpec([None, 2], "float32"), tf.TensorSpec([None], "int64")]
    padded = tf.function(compiled.padded, input_signature=spec)
    values, indices = padded(np.ones((rows, 2)), np.arange(rows))
    assert values.shape == (size, 2) and indices.shape == (size,)
    np.testing.assert_array_equal(values[rows:], np.zeros((size - rows, 2)))
    np.testing.assert_array_equal(indices[:rows], np.arange(rows))
