"""A child process that trains in one precision, an epoch each time it is told to.

Messages to the parent are pairs (kind, content): "ready" once the model is built,
"refused" with a message if what the user gave cannot be used, "epoch" after each
epoch. The parent sends one message to start each epoch and closes the pipe to end.
Several workers of one precision do and send the same, each to its own pipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_mp
from keras_mp import hardware, terminal
from keras_mp.compare import custom, tasks

TASKS = {"digits": tasks.DIGITS, "text": tasks.TEXT, "custom": custom.CUSTOM}


def main(
    connection: Connection,
    job: tasks.Job,
    policy: str,
    addresses: list[str],
    index: int,
) -> None:
    """Train as the parent at the other end of the connection says, until it closes it.

    Args:
        connection: This end of the pipe.
        job: What to train.
        policy: The name of the dtype policy.
        addresses: The addresses of all workers of the policy.
        index: Which of them this process is.
    """
    with connection, contextlib.suppress(EOFError, BrokenPipeError):
        try:
            _train(connection, job, policy, *claim_devices(job, addresses, index))
        except terminal.UserError as error:
            connection.send(("refused", str(error)))


def _train(
    connection: Connection,
    job: tasks.Job,
    policy: str,
    device: str,
    strategy: tf.distribute.Strategy | None,
) -> None:
    keras.utils.set_random_seed(job.seed)
    task = TASKS[job.task]
    data, batch_size = tasks.fit_batches(task.load(job), job)
    job = tasks.with_steps(job, task, len(data.x), batch_size)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = task.build(job, policy, data)
    ready = {
        "device": device,
        "notes": data.notes,
        "parameters": model.count_params(),
        "epochs": job.epochs,
        "batch_size": batch_size,
        "steps_per_epoch": job.steps,
        "growth_interval": job.growth_interval,
    }
    connection.send(("ready", ready))
    callbacks: list[keras.callbacks.Callback] = [Lockstep(connection)]
    if isinstance(model.optimizer, keras_mp.LossScaleOptimizer):
        callbacks.insert(0, keras_mp.callbacks.ScalerStats(frequency=1))
    model.fit(
        batches(data.x, data.y, batch_size, seed=job.seed),
        validation_data=batches(data.x_val, data.y_val, batch_size),
        epochs=job.epochs,
        steps_per_epoch=job.steps,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )


def claim_devices(
    job: tasks.Job, addresses: list[str], index: int
) -> tuple[str, tf.distribute.Strategy | None]:
    """Choose the devices before TensorFlow starts them.

    Several replicas run on as many GPUs or, if there are fewer, on logical CPUs;
    several workers, which are processes, on a GPU each or all on the CPU.

    Returns:
        The devices' name, and the strategy to train under or None.
    """
    replicas, workers = job.replicas, job.workers
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and len(gpus) < max(replicas, workers):
        gpus = []
    elif workers > 1:
        gpus = gpus[index : index + 1]
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    kind = "GPU" if gpus else "CPU"
    name = hardware.gpu_names()[0] if gpus else hardware.cpu_name()
    if workers > 1:
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": addresses}),
            task_type="worker",
            task_id=index,
            rpc_layer="grpc",
        )
        title = f"{workers} processes on {f'{workers} x ' if gpus else ''}{name}"
        return title, tf.distribute.MultiWorkerMirroredStrategy(resolver)
    if replicas == 1:
        return name, None
    if kind == "CPU":
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
        tf.config.set_logical_device_configuration(cpu, parts)
    devices = [f"{kind}:{index}" for index in range(replicas)]
    title = f"{replicas} x {name}" if gpus else f"{replicas} logical CPUs of {name}"
    return title, tf.distribute.MirroredStrategy(devices)


def batches(
    x: np.ndarray, y: np.ndarray, size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Return batches of (x, y).

    With a seed, all batches are complete and there is no end: each pass is in another
    order. TensorFlow's tuning of the pipeline is off, because its thread may delay the
    end of a dataset by as long as the epoch took.
    """
    with tf.device("CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices((x, y))
    if seed is None:
        dataset = dataset.batch(size)
    else:
        dataset = dataset.shuffle(len(x), seed=seed)
        dataset = dataset.batch(size, drop_remainder=True).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    share = tf.data.experimental.AutoShardPolicy.DATA  # a part of each batch
    options.experimental_distribute.auto_shard_policy = share
    return dataset.with_options(options)


class Lockstep(keras.callbacks.Callback):
    """Waits for the parent before each epoch, and reports to it after the epoch.

    A report is a dict. Some of its values are lists with one value for each step: the
    loss of its batch (None if it is not finite), whether it was skipped, the seconds it
    took and the loss scale (None without one). Others are counts since the start: steps
    skipped, those of them that changed a weight or a variable of the optimizer, and how
    often the scale grew.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.skipped = self.changing = self.growths = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.connection.recv()
        self.losses, self.skips, self.seconds, self.scales = [], [], [], []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Keras reports a running mean; after a reset it is the loss of this step alone.
        self.model.reset_metrics()
        self.before = self._state()
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        skipped = logs.get("scaler_skipped", 0)
        self.skips.append(skipped > self.skipped)
        if self.skips[-1]:
            self.changing += self.before != self._state()
        self.skipped = skipped
        self.growths = logs.get("scaler_growths", 0)
        self.losses.append(finite(logs["loss"]))
        scale = finite(logs.get("scaler_scale")) if self._scales() else None
        self.scales.append(scale)

    def _scales(self) -> bool:
        """Return whether the loss is scaled, not only its gradients checked."""
        rule = getattr(self.model.optimizer, "scaling", None)
        return rule is not None and not rule.only_checks

    def _state(self) -> list[bytes]:
        """Return digests of the variables that a skipped step must not change.

        They are none where no step is skipped. Digests, because copies would add to the
        memory that is reported.
        """
        optimizer = self.model.optimizer
        if not isinstance(optimizer, keras_mp.LossScaleOptimizer):
            return []
        variables = self.model.weights + optimizer.inner_optimizer.variables
        return [hashlib.sha256(np.array(v).tobytes()).digest() for v in variables]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        validation = {
            name.removeprefix("val_"): finite(value)
            for name, value in logs.items()
            if name.startswith("val_")
        }
        report = {
            "losses": self.losses,
            "skips": self.skips,
            "seconds": self.seconds,
            "scales": self.scales,
            "skipped": self.skipped,
            "changing": self.changing,
            "growths": self.growths,
            "validation": validation,
            "peak_memory": peak_memory(),
        }
        self.connection.send(("epoch", report))

    def on_train_end(self, logs: Any = None) -> None:
        # Until the others are done: ending would slow down their last epoch.
        with contextlib.suppress(EOFError):
            self.connection.recv()


def finite(value: Any) -> float | None:
    """Return the value as a float; None if it is missing, infinite or NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def peak_memory() -> int | None:
    """Return the peak memory so far in bytes: of the fullest GPU, else of this process.

    On Linux it is not ``ru_maxrss``, which starts from the peak of the parent there.
    """
    gpus = range(len(tf.config.list_logical_devices("GPU")))
    if gpus:
        infos = [tf.config.experimental.get_memory_info(f"GPU:{gpu}") for gpu in gpus]
        return max(info["peak"] for info in infos)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return hardware.proc_bytes("VmHWM", "/proc/self/status")
