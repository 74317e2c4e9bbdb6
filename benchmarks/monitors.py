"""What callbacks that look at batches cost: ``fit`` with each, and without any."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

import keras_mp
from benchmarks import timing
from benchmarks.workloads import SEED, WORKLOADS, Workload
from keras_mp.processes import alone
from keras_mp.recording import BatchCallback
from keras_mp.tables import markdown, number

#: Steps of one timed ``fit``, in the last of which a callback looks.
STEPS = 10

MODELS = ("convolutional", "transformer")

#: What is timed: functions that return the callbacks of a ``fit``.
CANDIDATES = {
    "without": lambda: [],
    "batches": lambda: [BatchCallback()],
    "OverflowMonitor": lambda: [keras_mp.callbacks.OverflowMonitor()],
    "NumericsMonitor": lambda: [keras_mp.callbacks.NumericsMonitor(STEPS)],
    "ShadowCheck": lambda: [keras_mp.callbacks.ShadowCheck(STEPS)],
}
#: Callbacks that look at some batches only.
LOOKING = ["NumericsMonitor", "ShadowCheck"]
PAIRS = [
    ("batches", "without"),
    ("OverflowMonitor", "without"),
    *((name, "batches") for name in LOOKING),
]


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time ``fit`` of the convolutional network and of the transformer with Adam.

    Returns:
        Dicts of ``model``, ``callbacks`` and a `timing.summary`, of single steps.
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
            look = STEPS * (timing.median_ratio(result, name, "batches") - 1)
            cells += [number(look, ".1f"), number(100 * kept + look, ".1f")]
        rows.append([WORKLOADS[result["model"]].title, *cells])
    return markdown(head, rows)


def fitting(
    workload: Workload, policy: str, callbacks: Callable[[], list]
) -> Callable[[], None]:
    """Return a function that calls ``fit`` for `STEPS` steps on one batch."""
    keras.utils.set_random_seed(SEED)
    model = workload.build()
    keras_mp.compile(model, "adam", workload.loss, policy=policy)
    batch = tf.data.Dataset.from_tensors(workload.batch(workload.rows))
    batches = batch.cache().repeat().prefetch(2)
    # The same objects in each `fit`, which would trace others anew.
    used = callbacks()

    def fit() -> None:
        model.fit(
            batches, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=used
        )

    return fit


def _time(model: str, policy: str, rounds: int) -> dict:
    candidates = {
        name: fitting(WORKLOADS[model], policy, callbacks)
        for name, callbacks in CANDIDATES.items()
    }
    seconds = timing.paired_rounds(candidates, rounds)
    steps = {name: [each / STEPS for each in times] for name, times in seconds.items()}
    return timing.summary([steps], PAIRS)
