"""Peak memory of training under each policy, beside what `memory_report` predicts."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import tensorflow as tf

import keras_mp
from benchmarks.devices import share_gpus
from benchmarks.steps import OPTIMIZERS
from benchmarks.workloads import Workload, sized
from keras_mp import hardware
from keras_mp.processes import alone
from keras_mp.tables import markdown

POLICIES = ("float32", "mixed_bfloat16")

#: Rows of a batch, by the models that can be built smaller, to warm up with.
ROWS = {"wide": (1024, 4096), "convolutional": (256, 1024), "transformer": (64, 256)}
SMALL = {"width": 64}
_STATUS = "/proc/self/status"
STEPS = 6  # the allocator's peak is reached after a few


def measure(models: list[str], show: Callable[[str], None]) -> list[dict]:
    """Train each model at two batch sizes, each time in a process of its own.

    Args:
        models: Names of workloads; those that are not in ``ROWS`` are left out.
        show: Takes lines about the progress.

    Returns:
        Dicts of ``model``, ``policy``, ``optimizer``, ``rows``, and the bytes
        ``measured`` and ``predicted``.
    """
    cases = [
        (model, policy, optimizer, rows)
        for model in models
        if model in ROWS
        for policy in POLICIES
        for optimizer in OPTIMIZERS
        for rows in ROWS[model]
    ]
    results = []
    for case in cases:
        show(f"  memory: {sized(case[0]).title}, {', '.join(map(str, case[1:]))}")
        known = dict(zip(("model", "policy", "optimizer", "rows"), case, strict=True))
        sizes = {"measured": alone(_measured, *case), "predicted": _predicted(*case)}
        results.append(known | sizes)
    return results


def table(results: list[dict]) -> str:
    """Measured and predicted megabytes, and how far the prediction is off."""
    head = ["model, policy, optimizer, batch", "measured, MB", "predicted, MB", "error"]
    rows = []
    for result in results:
        measured, predicted = result["measured"], result["predicted"]
        title = sized(result["model"]).title
        case = f"{title}, {result['policy']}, {result['optimizer']}, {result['rows']}"
        error = f"{predicted / measured - 1:+.0%}"
        rows.append([case, f"{measured / 1e6:.0f}", f"{predicted / 1e6:.0f}", error])
    return markdown(head, rows)


def growth(warm_up: Callable[[], None], train: Callable[[], None]) -> int:
    """Return the bytes by which this process grows at most while it calls ``train``.

    On a GPU, the peak of its allocator. On a CPU resident size, which Linux tells.

    Args:
        warm_up: Trains a small model of the same kind, so that the code which is loaded
            for it is not counted. Nor is that of XLA, which compiles for large
            variables only.
        train: Trains, on data that is in memory already.
    """
    warm_up()
    if tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
        train()
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    _load_xla()
    before = hardware.proc_bytes("VmRSS", _STATUS)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    train()
    return hardware.proc_bytes("VmHWM", _STATUS) - before


def _load_xla():
    """Have XLA compile something, for which some 40 MB of code are loaded once."""
    double = tf.function(lambda x: x + x, jit_compile=True, autograph=False)
    double(tf.ones([8]))


def _measured(model, policy, optimizer, rows):
    share_gpus()
    # Where more is free cuDNN takes more, most of it for algorithms it only tries.
    os.environ.setdefault("TF_CUDNN_WORKSPACE_LIMIT_IN_MB", "1")
    keras_mp.set_policy(policy)
    large, small = sized(model, rows), sized(model, 4, **SMALL)
    data, few = _data(large), _data(small)
    return growth(
        lambda: _train(small, optimizer, few), lambda: _train(large, optimizer, data)
    )


def _data(workload: Workload):
    return tf.data.Dataset.from_tensors(workload.batch(workload.rows)).repeat(STEPS)


def _train(workload, optimizer, data):
    model = workload.build()
    # What is predicted is a step without XLA, Keras's default on a GPU.
    keras_mp.compile(model, OPTIMIZERS[optimizer](), workload.loss, jit_compile=False)
    model.fit(data, verbose=0)


def _predicted(model, policy, optimizer, rows):
    workload = sized(model)
    with keras_mp.policy_scope(policy):
        report = keras_mp.memory_report(
            workload.build(),
            rows,
            policy,
            optimizer=OPTIMIZERS[optimizer](),
            loss=workload.loss,
        )
    return report.peak
