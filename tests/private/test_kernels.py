"""Kernels of TensorFlow that Keras has no name for."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mp import private


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_raise_if_raises_with_its_message_only_if_true(wrap):
    @wrap
    def step(flag):
        private.kernels.raise_if(flag, "the scale is stuck")
        return tf.constant(1)

    assert int(step(tf.constant(False))) == 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="the scale is stuck"):
        step(tf.constant(True))


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (2, 2, 4, 3), (1, 2, 2, 2, 3)])
def test_a_batch_is_normalized_by_one_kernel(shape):
    x = np.random.default_rng(0).normal(2.0, 3.0, shape).astype("float32")
    axes = tuple(range(len(shape) - 1))
    gamma, beta = np.float32([1, 2, 3]), np.float32([0, 1, -1])
    outputs, mean, variance = private.kernels.batch_normalized(x, gamma, beta, 1e-3)
    expected = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-3) * gamma + beta
    # float32 sums of a few numbers, in any order
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var(axes), rtol=1e-5)


@pytest.mark.parametrize("run", [lambda function: function, tf.function])
@pytest.mark.parametrize("condition", [True, False])
def test_a_condition_chooses_a_function(run, condition):
    number, rows = tf.constant(2.0), tf.constant([3, 4])

    @run
    def choose(condition):
        return private.kernels.cond(
            condition,
            lambda: [number, tf.constant(True)],
            lambda: [-number, tf.size(rows) == 1],
        )

    number, flag = choose(tf.constant(condition))
    assert float(number) == (2.0 if condition else -2.0)
    assert bool(flag) == condition


@pytest.mark.internals
@pytest.mark.cpu
def test_a_condition_is_one_operation_whatever_enters_it():
    # TensorFlow lowers an If to a Switch for each input where this attribute is set.
    @tf.function
    def step(condition, *parts):
        def inner():
            executors.append(context.context().function_call_options.executor_type)
            return tf.cond(parts[0] > 1.0, lambda: tf.add_n(parts), lambda: 1.0)

        return private.kernels.cond(condition, lambda: tf.constant(0.0), inner)

    from tensorflow.python.eager import context

    executors = []
    specs = [tf.TensorSpec((), "bool"), *[tf.TensorSpec(())] * 9]
    graph = step.get_concrete_function(*specs).graph
    (branch,) = [op for op in graph.get_operations() if "If" in op.type]
    with pytest.raises(ValueError, match="_lower_using_switch_merge"):
        branch.get_attr("_lower_using_switch_merge")
    # What a branch traces by itself is as always.
    nodes = [node for f in graph.as_graph_def().library.function for node in f.node_def]
    (nested,) = [node for node in nodes if "If" in node.op]
    assert nested.attr["_lower_using_switch_merge"].b
    assert executors == [""]
