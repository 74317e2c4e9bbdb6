"""What casting costs: mixed bfloat16 against pure bfloat16, and both against float32.

Under a mixed policy each use of a weight casts it, and each of its gradients is cast
back. Pure bfloat16 does neither, but its 8 significant bits cannot hold small updates:
it is the speed to reach, not a way to train.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import steps, timing
from benchmarks.workloads import WORKLOADS
from keras_mp.processes import alone
from keras_mp.tables import markdown, number

# Policy and candidate of `steps.COMPILE`, by column.
COLUMNS = {
    "float32": ("float32", "bare"),
    "mixed_bfloat16": ("mixed_bfloat16", "bare"),
    "mixed_bfloat16, keras_mp": ("mixed_bfloat16", "keras_mp"),
    "bfloat16": ("bfloat16", "bare"),
}
PAIRS = [(name, "bfloat16") for name in ("mixed_bfloat16", "mixed_bfloat16, keras_mp")]


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time each model with SGD and Adam under each policy, in paired rounds.

    Returns:
        Dicts of ``model``, ``optimizer`` and a `timing.summary` of the columns.
    """
    results = []
    for model in models:
        for optimizer in steps.OPTIMIZERS:
            show(f"  casts: {WORKLOADS[model].title}, {optimizer}")
            timed = alone(_time, model, optimizer, rounds)
            results.append({"model": model, "optimizer": optimizer} | timed)
    return results


def table(results: list[dict]) -> str:
    """Milliseconds per step, and how far mixed is behind pure bfloat16."""
    head = ["model, optimizer", *(f"{name}, ms" for name in COLUMNS)]
    head += ["mixed / pure", "keras_mp / pure"]
    rows = []
    for result in results:
        milliseconds = (timing.milliseconds(result, name) for name in COLUMNS)
        behind = (timing.median_ratio(result, *pair) for pair in PAIRS)
        title = f"{WORKLOADS[result['model']].title}, {result['optimizer']}"
        cells = [number(value, ".1f") for value in milliseconds]
        rows.append([title, *cells, *map(number, behind)])
    return markdown(head, rows)


def _time(model, optimizer, rounds):
    workload = WORKLOADS[model]
    candidates = {
        name: steps.keras_step(workload, candidate, optimizer, policy)
        for name, (policy, candidate) in COLUMNS.items()
    }
    return timing.summary([timing.paired_rounds(candidates, rounds)], PAIRS)
