"""The devices of measurements: they are fixed once TensorFlow starts."""

from __future__ import annotations

import tensorflow as tf


def share_gpus() -> None:
    """Have this process take a GPU's memory as it needs it, and leave the rest.

    Else TensorFlow takes all of it, and other processes and PyTorch find none.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def mirrored(replicas: int) -> tf.distribute.MirroredStrategy | None:
    """A strategy on logical CPUs, the first use of TensorFlow in this process.

    None for one replica.
    """
    if replicas == 1:
        return None
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    tf.config.set_logical_device_configuration(cpu, parts)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
