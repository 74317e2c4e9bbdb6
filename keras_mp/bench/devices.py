"""Measurements in processes of their own: devices are fixed once TensorFlow starts."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import tensorflow as tf

#: Seconds. A collective that waits for a lost peer waits for ever; the longest that a
#: process took otherwise is 19 minutes on two cores, most of them XLA's and JAX's.
DEADLINE = 3600


def alone(function: Callable, *arguments):
    """Return what ``function(*arguments)`` returns in a new process.

    Raises:
        TimeoutError: It took longer than ``DEADLINE`` seconds.
        EOFError: It failed; its process has printed why.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # PyTorch's threads would spin where they wait for each other, and slow all others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(DEADLINE):
            raise TimeoutError(f"{function.__name__}{arguments} took {DEADLINE} s.")
        return ours.recv()
    finally:
        process.kill()
        process.join()


def _send(connection, function, arguments):
    connection.send(function(*arguments))


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
