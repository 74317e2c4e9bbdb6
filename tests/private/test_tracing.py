"""What a graph of TensorFlow tells while it is traced."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mp import dtypes, private


@pytest.mark.parametrize("compiled", [True, False])
def test_xla_is_known_where_it_traces(compiled):
    seen = []
    tf.function(lambda: seen.append(private.tracing.in_xla()), jit_compile=compiled)()
    assert seen == [compiled]
    assert not private.tracing.in_xla()


def test_a_tensor_is_known_by_what_it_was_cast_from():
    @tf.function
    def function(narrow, whole):
        assert private.tracing.before_cast(tf.cast(narrow, "float32")) is narrow
        assert private.tracing.before_cast(narrow) is narrow
        wide = tf.cast(whole, "float32")
        assert private.tracing.before_cast(wide) is wide

    function(tf.constant(1.0, "bfloat16"), tf.constant(1))
    eager = tf.cast(tf.constant(1.0, "bfloat16"), "float32")
    assert private.tracing.before_cast(eager) is eager


def test_tensors_are_known_by_what_they_were_unstacked_from():
    @tf.function
    def function(stack):
        a, b, c = tf.unstack(stack)
        assert private.tracing.before_unstack(a) is stack
        assert private.tracing.before_unstack(a, b, c) is stack
        for others in [(a, b), (a, c, b), (a, b, tf.identity(c)), (stack,)]:
            assert private.tracing.before_unstack(*others) is None
        across = tf.unstack(stack, axis=1)
        assert private.tracing.before_unstack(*across) is None

    function(tf.ones((3, 3)))
    eager = tf.unstack(tf.ones((3, 3)))
    assert private.tracing.before_unstack(*eager) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "float32"])
def test_only_casts_from_narrow_floats_are_done_again(dtype):
    kinds = []

    @tf.function
    def function(tensor):
        result = tf.cast(tensor, "float32") if dtype != "float32" else tensor + 1.0
        again = private.tracing.cast_here(result)
        kinds.append(again is not result)
        return again, result

    again, result = function(tf.constant([1, 2], dtype))
    np.testing.assert_array_equal(again, result)
    assert kinds == [dtype in dtypes.LOW_PRECISION]
    assert private.tracing.cast_here(again) is again  # eager


def _graph_of(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    return tf.function(function).get_concrete_function(*specs).graph


def test_functions_of_an_operation_have_shapes():
    @tf.function
    def inner(x):
        return tf.square(x)

    graph = _graph_of(lambda x: inner(x) + 1.0, (3, 4))
    (call,) = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
    (found,) = private.tracing.functions_of(graph, call)
    assert [tensor.shape.as_list() for tensor in found.outputs] == [[3, 4]]


def test_functions_of_both_branches_are_found():
    def either(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2.0, lambda: x)

    graph = _graph_of(either, (2,))
    (branch,) = [op for op in graph.get_operations() if op.type.endswith("If")]
    assert len(private.tracing.functions_of(graph, branch)) == 2


def test_a_tensor_is_at_hand_in_its_graph_and_in_branches_inside_it():
    seen = {}

    @tf.function
    def other(x):
        return seen.setdefault("ended", x * 2.0)

    @tf.function
    def step(x):
        here = x * 2.0
        other(x)
        tensors = {"here": here, "ended": seen["ended"], "value": value}

        def look(where):
            seen[where] = {
                name: private.tracing.is_at_hand(tensor)
                for name, tensor in tensors.items()
            }
            return tf.constant(0.0)

        look("graph")
        return tf.cond(x > 0, lambda: look("branch"), lambda: 0.0)

    value = tf.constant(1.0)
    step(tf.constant(1.0))
    assert seen["graph"] == {"here": True, "ended": False, "value": False}
    assert seen["branch"] == seen["graph"]
    assert private.tracing.is_at_hand(value)
    assert not private.tracing.is_at_hand(seen["ended"])
