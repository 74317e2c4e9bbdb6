"""What is read from graphs."""

import pytest
import tensorflow as tf

from keras_mp.memory import graphs


def graph_of(function, *shapes, dtype=tf.float32):
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    return tf.function(function).get_concrete_function(*specs).graph


@pytest.mark.parametrize(
    "order", [graphs.WRITTEN, graphs.DEPTH_FIRST, graphs.BREADTH_FIRST]
)
def test_operations_wait_for_what_they_need(order):
    graph = graph_of(lambda x: tf.reduce_sum(tf.exp(x) * tf.sin(x)), (5,))
    place = {
        op.name: i for i, op in enumerate(graphs.scheduled(graphs.needed(graph), order))
    }
    assert place
    for op in graph.get_operations():
        if op.name in place:
            assert all(place[t.op.name] < place[op.name] for t in op.inputs)


def test_what_nothing_needs_is_left_out():
    def function(x):
        tf.exp(x)
        return tf.sin(x)

    kinds = [op.type for op in graphs.needed(graph_of(function, (2,)))]
    assert "Sin" in kinds and "Exp" not in kinds


def test_sizes():
    graph = graph_of(lambda x: x, (2, 3), dtype=tf.bfloat16)
    assert graphs.size_of(graph.inputs[0]) == 12
    assert graphs.size_of(graph_of(lambda x: x, (None,)).inputs[0]) is None


def test_loops_tell_how_often_they_run():
    def loop(x):
        return tf.while_loop(
            lambda x: tf.reduce_all(x < 100.0),
            lambda x: [x + 1.0],
            [x],
            maximum_iterations=7,
        )

    graph = graph_of(lambda x: loop(x)[0], (2,))
    (op,) = [op for op in graph.get_operations() if op.type.endswith("While")]
    assert graphs.trips(op, [None]) == 7


def test_orders_differ():
    def function(x):
        first = tf.sin(tf.exp(x))
        second = tf.cos(tf.tanh(x))
        return first + second

    graph = graph_of(function, (2,))
    kinds = {"Exp", "Sin", "Tanh", "Cos"}

    def order(name):
        found = graphs.scheduled(graphs.needed(graph), name)
        return [op.type for op in found if op.type in kinds]

    assert order(graphs.WRITTEN) == ["Exp", "Sin", "Tanh", "Cos"]
    assert order(graphs.DEPTH_FIRST) == ["Tanh", "Cos", "Exp", "Sin"]
    assert order(graphs.BREADTH_FIRST) == ["Exp", "Tanh", "Sin", "Cos"]
