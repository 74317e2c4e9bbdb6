"""Which errors are about dtypes, and which layer they name."""

import keras
import pytest
import tensorflow as tf

from keras_mp import private


@pytest.mark.parametrize(
    "raises",
    [
        lambda x: x * tf.ones(3),
        lambda x: tf.concat([x, tf.ones(3)], 0),
        lambda x: tf.linalg.matvec(tf.eye(3), x),
        lambda x: tf.cond(tf.constant(True), lambda: x, lambda: tf.ones(3)),
        lambda x: tf.signal.rfft(x),
        lambda x: tf.range(tf.cast(3, x.dtype), dtype=x.dtype),
        lambda x: tf.function(tf.sin, input_signature=[tf.TensorSpec((3,))])(x),
        lambda x: tf.Variable([1.0, 2.0, 3.0]).assign(x),
    ],
)
def test_errors_about_dtypes_are_known(raises):
    def run(x):
        return raises(x)

    with pytest.raises(Exception) as caught:
        tf.function(run).get_concrete_function(tf.TensorSpec((3,), "float16"))
    assert private.errors.is_dtype_error(caught.value), caught.value


@pytest.mark.parametrize(
    "raises",
    [
        lambda x: tf.reshape(x, (5,)),
        lambda x: tf.matmul(x, x),
        lambda x: x[0] if x.shape[0] > 5 else {}["float16"],
        lambda x: keras.layers.Dense(2)(x, 1, 2, 3),
    ],
)
def test_other_errors_are_not_taken_for_those(raises):
    with pytest.raises(Exception) as caught:
        raises(tf.ones((3,), "float16"))
    assert not private.errors.is_dtype_error(caught.value), caught.value


def test_the_layer_of_an_operation_without_a_kernel_is_found():
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    own = Own(name="own")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), own])
    text = "No OpKernel was registered to support Op 'X' used by {{node a/own_1/X}}"
    assert private.errors.without_kernel(model, ValueError(text)) is own
    assert (
        private.errors.without_kernel(model, ValueError(text.replace("own", "no")))
        is None
    )
    assert private.errors.without_kernel(model, ValueError("another")) is None
