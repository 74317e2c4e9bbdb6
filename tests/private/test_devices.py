"""What TensorFlow's devices tell."""

import pytest
import tensorflow as tf

from keras_mp import private


@pytest.mark.cpu
def test_there_is_no_gpu_memory_without_a_gpu():
    assert private.devices.free_gpu_memory() is None


def test_the_limit_of_a_gpu_is_read(monkeypatch):
    from tensorflow.python.client import device_lib

    class Device:
        device_type, memory_limit = "GPU", 1000

    monkeypatch.setattr(device_lib, "list_local_devices", lambda: [Device])
    info = {"current": 400}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda name: info)
    assert private.devices.free_gpu_memory() == 600
