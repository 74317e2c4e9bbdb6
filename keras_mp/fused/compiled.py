"""Keras's update of one variable as a function of its own, compiled."""

import math
from typing import Any

import keras
from keras import ops

from keras_mp import numerics, private


def is_apart():
    """Return whether a function here is traced once, and compiled by itself."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not (tf.executing_eagerly() or private.tracing.in_xla())


def update_dense(jit_compile, scale, update_step, gradient, variable, learning_rate):
    """Call Keras's ``update_step`` in a function of its own, which gets simplified.

    TensorFlow simplifies nothing in a branch that is one node (`kernels.cond`), where a
    square that is written as a power takes ten times as long as a square. Compiled, all
    of it is one pass.

    Args:
        jit_compile: Whether XLA compiles it.
        scale: Scalar float32 variable by which it divides ``gradient``; None for 1.
        update_step: That of a Keras optimizer.
        gradient: A dense tensor.
        variable: The variable it belongs to.
        learning_rate: A scalar.
    """
    import tensorflow as tf

    @tf.function(jit_compile=jit_compile, autograph=False)
    def update(gradient, inverse, learning_rate):
        gradient = ops.cast(gradient, dtype)
        if scale is not None:
            gradient = numerics.rescale(gradient, inverse)
        update_step(gradient, variable, learning_rate)

    dtype, narrow = gradient.dtype, private.tracing.before_cast(gradient)
    inverse = None if scale is None else numerics.inverse(scale)
    update(narrow, inverse, tf.convert_to_tensor(learning_rate))


def update_rows(update_step, gradient, variable, learning_rate):
    """Call Keras's ``update_step``, compiled by XLA, for some rows of ``variable``."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def update(values, indices, learning_rate):
        rows = tf.IndexedSlices(values, indices, variable.shape)
        update_step(rows, variable, learning_rate)

    rate = tf.convert_to_tensor(learning_rate)
    update(*padded(gradient.values, gradient.indices), rate)


def padded(values, indices):
    """Return rows of a sparse gradient, up to a power of two with rows of zeros.

    XLA compiles for each number of rows, which may be another one in every batch.
    """
    import tensorflow as tf

    if values.shape[0] is not None:
        return values, indices
    rows = tf.shape(indices)[0]
    doublings = tf.math.log(tf.cast(tf.maximum(rows, 1), "float64")) / math.log(2.0)
    power: Any = tf.math.ceil(doublings)
    size = tf.cast(2.0**power, rows.dtype)
    missing = tf.maximum(size - rows, 0)
    around = [[0, missing], *([[0, 0]] * (values.shape.rank - 1))]
    return tf.pad(values, around), tf.pad(indices, [[0, missing]])
