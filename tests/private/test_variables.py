"""In which dtype variables are stored and read."""

import keras
import numpy as np
import tensorflow as tf

from keras_mp import private


def test_stacked_variables_are_read_and_added_to():
    variables = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])]
    np.testing.assert_array_equal(
        private.variables.stacked(variables), [[1, 2], [3, 4]]
    )
    private.variables.add_to(variables, tf.constant([[10.0, 0.0], [0.0, 10.0]]))
    np.testing.assert_array_equal(
        private.variables.stacked(variables), [[11, 2], [3, 14]]
    )


def test_a_variable_is_read_now():
    for dtype in ("int64", "float32", "bfloat16"):
        variable = keras.Variable([1, 2], dtype=dtype, trainable=False)
        variable.assign([3, 4])
        found = private.variables.read(variable)
        assert (found.tolist(), found.dtype.name) == ([3, 4], dtype)


def test_variables_are_read_as_stored_in_a_call_too():
    class Reads(keras.layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(shape=(), initializer="zeros")

        def call(self, inputs):
            seen.append(self.weight.dtype)
            with private.variables.variables_as_stored():
                seen.append(self.weight.dtype)
            seen.append(self.weight.dtype)
            return inputs

    seen = []
    Reads(dtype="mixed_float16")(np.zeros((1, 2), "float32"))
    assert seen == ["float16", "float32", "float16"]


def test_variables_are_read_in_the_dtype_asked_for():
    variable = keras.Variable(np.ones(2), dtype="float16")
    with private.variables.variables_read_in("float32"):
        assert (variable * 1).dtype == "float32"
        with private.variables.variables_as_stored():
            assert (variable * 1).dtype == "float16"
    assert (variable * 1).dtype == "float16"
