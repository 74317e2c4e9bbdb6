"""Formats, and what they need."""

import importlib.util
import os

import keras
import pytest
import tensorflow as tf
from support.exported import dense, needs_onnx

import keras_mp

# Of NumPy 2 and tf2onnx, and of tf2onnx itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx.*")


def test_paths_and_formats_that_are_refused(tmp_path):
    model = dense()
    with pytest.raises(ValueError, match=r"suffix '.pb'.*'tflite'"):
        keras_mp.export(model, tmp_path / "model.pb")
    with pytest.raises(ValueError, match="format='litert'.*'tflite'"):
        keras_mp.export(model, tmp_path / "model", "litert")
    with pytest.raises(ValueError, match="no folder"):
        keras_mp.export(model, tmp_path / "absent" / "model")
    assert keras_mp.export(model, tmp_path / "model.v1", "saved_model").path.is_dir()


@needs_onnx
def test_an_operation_that_onnx_lacks(tmp_path):
    class Bessel(keras.layers.Layer):
        def call(self, x):
            return tf.math.bessel_i0e(x)

    model = keras.Sequential([keras.Input((4,)), Bessel()])
    with pytest.raises(ValueError, match="lacks one of its operations.*BesselI0e"):
        keras_mp.export(model, tmp_path / "model.onnx", verify=False)
    assert os.listdir(tmp_path) == []


def test_onnx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras_mp\[export\]'"):
        keras_mp.export(dense(), tmp_path / "model.onnx")
