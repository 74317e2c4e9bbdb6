"""Lint finds losses in 16 bits, and functions that a model calls by itself."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from support.lint import Own, X, dense, found, model_of, own

import keras_mp


def seen_by(loss):
    """Return a function, and the dtypes of the predictions that it was given."""
    seen = []

    def function(y_true, y_pred):
        seen.append(keras.backend.standardize_dtype(y_pred.dtype))
        return loss(y_true, y_pred)

    return function, seen


def test_functions_given_to_compile_get_float32_from_keras():
    function, seen = seen_by(keras.losses.mean_squared_error)
    model = model_of(dense())
    model.compile("sgd", function)
    model.fit(X, X, verbose=0)
    assert set(seen) == {"float32"}
    assert not found(model, "functional-loss")


def test_a_loss_in_16_bits():
    model = model_of(dense())
    model.compile("sgd", keras.losses.MeanSquaredError(dtype="float16"))
    (finding,) = found(model, "functional-loss")
    assert "mean_squared_error" in finding.reason and "float16" in finding.reason


def test_a_function_that_the_model_calls_by_itself():
    x = ops.full((1, 8), 300.0, dtype="float16")
    assert np.isinf(keras.losses.mean_squared_error(0 * x, x)).all()  # 90,000
    model = own()
    (finding,) = found(model, "functional-loss")
    assert "compute_loss calls mean_squared_error" in finding.reason
    keras_mp.compile(model, "adam")
    assert not found(model, "functional-loss")


def test_what_names_no_function_of_keras():
    class Decorated(Own):
        compute_loss = tf.function(Own.compute_loss)
        train_step = functools.partialmethod(Own.train_step)

        def test_step(self, data):
            huber = keras.losses.Huber()  # a class casts
            return {"huber": huber(data[1], self(data[0]))}

    model = Decorated()
    model({"one": X, "other": X})
    names = [f.reason.split(",")[0] for f in found(model, "functional-loss")]
    assert names == ["its compute_loss calls mean_squared_error"]
