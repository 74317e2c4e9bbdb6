"""What a dtype is known by."""

import keras
import numpy as np
import tensorflow as tf

from keras_mp import dtypes


def test_is_float():
    floats = [
        tf.constant(1.0),
        tf.constant(1.0, "bfloat16"),
        keras.KerasTensor((2,), dtype="float16"),
    ]
    others = [
        tf.constant(1),
        tf.constant(True),
        keras.KerasTensor((2,), dtype="int32"),
        np.ones(2),
        1.0,
        None,
    ]
    assert [dtypes.is_float(tensor) for tensor in floats] == [True] * 3
    assert [dtypes.is_float(tensor) for tensor in others] == [False] * 6
