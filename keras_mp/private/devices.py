"""What TensorFlow tells of its devices only in private."""


def free_gpu_memory():
    """Return the bytes that are free on the first GPU; None without a GPU.

    The limit of TensorFlow's allocator is public nowhere.
    """
    import tensorflow as tf
    from tensorflow.python.client import device_lib

    for device in device_lib.list_local_devices():
        if device.device_type == "GPU":
            used = tf.config.experimental.get_memory_info("GPU:0")["current"]
            return device.memory_limit - used
    return None
