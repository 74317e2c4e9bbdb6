"""Operations in the graph of a model."""

import keras
import numpy as np
from keras import layers

import keras_mp
from keras_mp import policy_scope


def test_an_operation_that_returns_what_it_gets_is_left_alone():
    inputs = keras.Input((1,))
    with policy_scope("mixed_float16"):
        outputs = layers.Dense(1, kernel_initializer="ones")(inputs)
    model = keras.Model(inputs, keras.ops.convert_to_tensor(outputs))
    keras_mp.compile(model, "sgd", "binary_crossentropy")
    x = np.array([[0.5]], "float32")
    np.testing.assert_array_equal(model.predict(x, verbose=0), x)
