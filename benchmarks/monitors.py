"""What callbacks that see batches cost.

What a callback does in each step is timed as a ``fit`` with it and one without. What it
does in every N-th step is timed alone, beside a step: a hundredth of it in a ``fit``
would be lost in the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import keras_mp
from benchmarks import timing
from benchmarks.workloads import SEED, WORKLOADS, Workload
from keras_mp.processes import alone
from keras_mp.recording import Batch, BatchCallback
from keras_mp.tables import markdown, number

#: Steps of one timed ``fit``.
STEPS = 10

MODELS = ("convolutional", "transformer")

#: What works in each step: functions that return the callbacks of a ``fit``.
FITTING = {
    "without": lambda: [],
    "batches": lambda: [BatchCallback()],
    "OverflowMonitor": lambda: [keras_mp.callbacks.OverflowMonitor()],
}
#: What looks at some batches only.
LOOKING = {
    "NumericsMonitor": keras_mp.callbacks.NumericsMonitor,
    "ShadowCheck": keras_mp.callbacks.ShadowCheck,
}
PAIRS = [(name, "without") for name in (*FITTING, *LOOKING) if name != "without"]


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time ``fit`` of the convolutional network and of the transformer with Adam.

    Returns:
        Dicts of ``model`` and a `timing.summary`, of single steps and looks.
    """
    results = []
    for model in filter(MODELS.__contains__, models):
        show(f"  monitors: {WORKLOADS[model].title}")
        results.append({"model": model} | alone(_time, model, policy, rounds))
    return results


def table(results: list[dict]) -> str:
    """Milliseconds of a step, and what is added: to all steps, and by every 100th."""
    head = ["model", "step, ms", "batches kept, %", "OverflowMonitor, %"]
    for name in LOOKING:
        head += [f"{name}, steps a look", "every=100, %"]
    rows = []
    for result in results:
        kept = timing.median_ratio(result, "batches", "without") - 1
        cells = [number(timing.milliseconds(result, "without"), ".1f")]
        watched = timing.median_ratio(result, "OverflowMonitor", "without") - 1
        cells += [number(100 * kept, ".1f"), number(100 * watched, ".1f")]
        for name in LOOKING:
            look = timing.median_ratio(result, name, "without")
            cells += [number(look, ".1f"), number(100 * kept + look, ".1f")]
        rows.append([WORKLOADS[result["model"]].title, *cells])
    return markdown(head, rows)


def fitting(
    workload: Workload, policy: str, callbacks: Callable[[], list]
) -> Callable[[], None]:
    """Return a function that calls ``fit`` for `STEPS` steps on one batch."""
    model = _compiled(workload, policy)
    batch = tf.data.Dataset.from_tensors(workload.batch(workload.rows))
    batches = batch.cache().repeat().prefetch(2)
    used = callbacks()

    def fit() -> None:
        model.fit(
            batches, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=used
        )

    return fit


def looking(
    workload: Workload, policy: str, callback: Callable[[int], keras.callbacks.Callback]
) -> Callable[[], None]:
    """Return a function in which ``callback(1)`` looks at one batch, and waits."""
    model = _compiled(workload, policy)
    used: Any = callback(1)
    x, y = workload.batch(workload.rows)
    model.fit(x, y, batch_size=workload.rows, verbose=0, callbacks=[used])
    batch = Batch(tf.constant(x), tf.constant(y))
    return lambda: used.look(1, batch, 1.0)


def _compiled(workload: Workload, policy: str) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    model = workload.build()
    keras_mp.compile(model, "adam", workload.loss, policy=policy)
    return model


def _time(model: str, policy: str, rounds: int) -> dict:
    workload = WORKLOADS[model]
    candidates = {
        name: fitting(workload, policy, callbacks)
        for name, callbacks in FITTING.items()
    }
    for name, callback in LOOKING.items():
        candidates[name] = looking(workload, policy, callback)
    seconds = timing.paired_rounds(candidates, rounds)
    for name in FITTING:
        seconds[name] = [each / STEPS for each in seconds[name]]
    return timing.summary([seconds], PAIRS)
