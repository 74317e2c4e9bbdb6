"""Sparse gradients for tests, and ways to run a function on them."""

import tensorflow as tf

GOOD_ROWS = [[1.0, -2.0], [3.0, 4.0]]

RUNS = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def sparse(values, dtype="float32"):
    """Return a gradient for rows 3 and 1 of a variable of five rows."""
    return tf.IndexedSlices(
        tf.constant(values, dtype), tf.constant([3, 1]), tf.constant([5, 2])
    )
