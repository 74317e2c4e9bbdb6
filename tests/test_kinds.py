"""Gradients of an embedding are sparse, others dense."""

import tensorflow as tf

from keras_mp import kinds


def test_gradients_of_an_embedding_are_the_sparse_ones_meant():
    table = tf.Variable(tf.zeros([5, 2]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [3, 3])) * 2.0
    gradient = tape.gradient(loss, table)
    assert kinds.is_sparse(gradient)
    assert not kinds.is_sparse(tf.ones(2))
    parts = kinds.dense_parts([None, gradient, tf.ones(3)])
    assert [part.shape for part in parts] == [(2, 2), (3,)]
