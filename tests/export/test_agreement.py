"""Predictions of the artefact beside those of the model."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.exported import dense

import keras_mp
from keras_mp.export import agreement

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


def test_predictions_that_do_not_agree(tmp_path):
    class Counts(keras.layers.Layer):
        calls = 0

        def call(self, x):
            self.calls += 1
            return x + self.calls

    model = keras.Sequential([keras.Input((4,)), Counts()])
    with pytest.raises(ValueError, match="does not predict as the model.*verify=False"):
        keras_mp.export(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []
    exported = keras_mp.export(model, tmp_path / "model.tflite", verify=False)
    assert exported.difference is None


def test_a_model_that_random_inputs_mean_nothing_to(tmp_path):
    class Roots(keras.layers.Layer):
        def call(self, x):
            if not keras.ops.is_tensor(x) or tf.inside_function():
                return x
            raise RuntimeError("no roots")

    model = keras.Sequential([keras.Input((4,)), Roots()])
    with pytest.raises(ValueError, match="raised the RuntimeError.*Pass sample"):
        keras_mp.export(model, tmp_path / "model")


def test_a_sample_of_another_structure(tmp_path):
    x = np.ones((1, 4), "float32")
    with pytest.raises(ValueError, match="needs 1 arrays.*Got 2"):
        keras_mp.export(dense(), tmp_path / "model", sample=[x, x])


@pytest.mark.parametrize(
    "got, expected, difference",
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([2.0, 3.0], [2.0, 4.0], 0.25),
        ([0.0, np.nan], [0.0, 1.0], np.inf),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], np.inf),
        ([1.0], [1], np.inf),
        ([1.0, 1.0], [1.0], np.inf),
    ],
)
def test_differences(got, expected, difference):
    assert agreement.difference(np.array(got), np.array(expected)) == difference
