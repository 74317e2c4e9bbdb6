"""What a model takes."""

import keras
import numpy as np
import pytest
from support.exported import check_export

import keras_mp

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


def test_several_arguments_need_a_signature(tmp_path):
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, a, b):
            return self.dense(a + b["c"])

    with keras_mp.policy_scope("mixed_float16"):
        model = Sum()
    x = np.ones((2, 3), "float32")
    model(x, {"c": x})
    with pytest.raises(ValueError, match="input_signature"):
        keras_mp.export(model, tmp_path / "model")
    spec = keras.InputSpec(shape=(None, 3), dtype="float32")
    options = {"input_signature": [spec, {"c": spec}]}
    sample = (x, {"c": 2 * x})
    check_export(model, [*sample], tmp_path, "tflite", **options, sample=sample)
