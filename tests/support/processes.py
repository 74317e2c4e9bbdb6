"""Strategies, and the processes that have them.

Collective keys leak from one strategy to the next within a process, so each process
makes one strategy; and a wrong collective hangs, so each process is watched from
outside.
"""

import json
import os
import subprocess
import sys

from keras_mp.processes import free_addresses

from .cells import STRATEGIES


def launch(module, environment, **streams):
    """Start a module of this package as a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.{module}"]
    return subprocess.Popen(command, env=os.environ | environment, text=True, **streams)


def run_alone(file, *arguments):
    """Run ``file`` in a process and return what it printed last, as JSON.

    Raises:
        subprocess.TimeoutExpired: It took far longer than the half minute it should
            on two busy cores; a deadlock would take for ever.
    """
    command = [sys.executable, "-W", "ignore", file, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def environments(strategy):
    """Return the environment of each process that ``strategy`` needs."""
    processes = STRATEGIES[strategy].processes
    # Tests are found where this process found them; TensorFlow's notes are no news.
    common = {"PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if processes == 1:
        return [common]
    workers = free_addresses(processes)
    return [
        common | {"TF_CONFIG": json.dumps(_cluster(workers, index))}
        for index in range(processes)
    ]


def make_strategy(name):
    """Return the strategy called ``name``; the first use of TensorFlow in a process."""
    import tensorflow as tf

    devices = STRATEGIES[name].devices
    if name.startswith("mirrored"):
        return mirrored(devices)
    if name.startswith("multi-worker"):
        split_cpu(devices)
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def mirrored(replicas):
    """Return a MirroredStrategy on ``replicas`` logical CPUs."""
    import tensorflow as tf

    split_cpu(replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def split_cpu(parts):
    """Make ``parts`` logical devices of the CPU, before TensorFlow uses it."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * parts
    )


def _cluster(workers, index):
    return {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
    }
