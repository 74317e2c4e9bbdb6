"""The report of a comparison: the table, the sentences and the JSON file."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_mp
from keras_mp.compare.runner import BASELINE, Run
from keras_mp.compare.tasks import Job, Task
from keras_mp.saved_files import written_whole
from keras_mp.tables import Cell, aligned, number

MIB = 2**20
EMULATED = "emulated"
# Options whose values depend on the data.
_RESOLVED = ("epochs", "batch_size", "growth_interval")


@dataclasses.dataclass
class Comparison:
    """All that is reported.

    Attributes:
        job: The options.
        task: What was trained.
        reason: Which precision this machine is fast in, and why.
        native: The mixed policies whose dtype it has hardware for.
        runs: The results of each policy, float32 first.
        wide: Results of the task's wide network, for their times; empty if the task has
            none or no mixed policy is native.
    """

    job: Job
    task: Task
    reason: str
    native: tuple[str, ...]
    runs: list[Run]
    wide: list[Run] = dataclasses.field(default_factory=list)

    def times(self, run: Run) -> tuple[float | None, float | None]:
        """Return ms per step and speed-up of a run; None for both if it is emulated."""
        runs = self.wide or self.runs
        timed = next((each for each in runs if each.policy == run.policy), None)
        if timed is None or self.is_emulated(run):
            return None, None
        time = timed.step_time()
        speed_up = None if run.policy == BASELINE else timed.speed_up(runs[0])
        return time and time * 1000, speed_up

    def is_emulated(self, run: Run) -> bool:
        """Return whether the machine has no hardware for the run's precision."""
        return run.policy not in (BASELINE, *self.native)


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table's numbers, a row for each run; None where there is no number.

    Times are in milliseconds, memory in MiB.
    """
    runs = comparison.runs
    first = _validation(runs[0])
    table = []
    for run in runs:
        last, value = run.epochs[-1], _validation(run)
        difference = None
        if run is not runs[0] and first is not None and value is not None:
            difference = value - first
        ms_per_step, speed_up = comparison.times(run)
        table.append(
            {
                "policy": run.policy,
                "metric": run.metric,
                "validation": value,
                "difference": difference,
                "emulated": comparison.is_emulated(run),
                "ms_per_step": ms_per_step,
                "speed_up": speed_up,
                "peak_memory_mib": last["peak_memory"] and last["peak_memory"] / MIB,
                "final_scale": run.scale,
                "growths": last["growths"],
                "steps_skipped": last["skipped"],
            }
        )
    return table


def _validation(run: Run) -> float | None:
    return run.epochs[-1]["validation"].get(run.metric)


def table(comparison: Comparison) -> str:
    """Return the rows as aligned text."""
    metric = f"val {comparison.runs[0].metric}"[:14]
    head = ["", metric, "difference", "ms/step", "speed-up", "memory"]
    lines: list[list[Cell]] = [[*head, "final scale", "growths", "skipped"]]
    for row in rows(comparison):
        speed_up = number(row["speed_up"], ".2f", "x")
        lines.append(
            [
                row["policy"],
                number(row["validation"], ".4f"),
                number(row["difference"], "+.4f"),
                number(row["ms_per_step"], ".1f"),
                EMULATED if row["emulated"] else speed_up,
                number(row["peak_memory_mib"], ",.0f", " MiB"),
                number(row["final_scale"], ",g"),
                str(row["growths"]),
                str(row["steps_skipped"]),
            ]
        )
    return aligned(lines)


def sentences(comparison: Comparison) -> list[str]:
    """Return what the comparison has shown, in sentences."""
    return [
        *_on_times(comparison),
        *_on_results(comparison),
        *_on_skipped(comparison),
        *_on_hardware(comparison),
    ]


def _on_times(comparison: Comparison) -> Iterator[str]:
    if comparison.wide:
        wide, runs = comparison.wide[0].ready, comparison.runs
        yield (
            f"Times are those of the same network, {comparison.task.wider} times as "
            f"wide ({wide['parameters']:,} parameters instead of "
            f"{runs[0].ready['parameters']:,})."
        )


def _on_results(comparison: Comparison) -> Iterator[str]:
    found = [row for row in rows(comparison) if row["difference"] is not None]
    if not found:
        return
    row = max(found, key=lambda row: abs(row["difference"]))
    largest, spread = abs(row["difference"]), comparison.task.spread
    text = (
        f"The largest difference from float32 in val {row['metric']} is {largest:.4f}"
    )
    if spread is None:
        yield f"{text}; other seeds (--seed) show how far chance alone moves it."
    elif largest <= spread:
        yield f"{text}, within the {spread:.4f} by which seeds alone move float32."
    else:
        yield (
            f"{text} ({row['policy']}), more than the {spread:.4f} by which seeds "
            "alone move float32."
        )


def _on_skipped(comparison: Comparison) -> Iterator[str]:
    for run in comparison.runs:
        last = run.epochs[-1]
        skipped, scaled = last["skipped"], run.scale is not None
        grew = f"the scale grew {last['growths']} times"
        if not skipped:
            if scaled:
                yield f"{run.policy} skipped no step; {grew}."
            continue
        text = f"{run.policy} skipped {skipped} of {len(run.series('losses'))} steps"
        if scaled:
            text += (
                f": {grew}, after each {run.ready['growth_interval']} clean steps, "
                "until gradients overflowed"
            )
        else:
            text += ", whose gradients were not finite"
        if last["changing"]:
            text += f"; {last['changing']} of them changed a weight, which is a fault"
        else:
            text += "; none of them changed a weight or a variable of the optimizer"
        yield f"{text}."


def _on_hardware(comparison: Comparison) -> Iterator[str]:
    yield comparison.reason
    table = rows(comparison)
    for row in table:
        if row["speed_up"]:
            share = 1 / row["speed_up"]
            yield f"A step in {row['policy']} took {share:.2f} of float32's time."
    emulated = [row["policy"] for row in table if row["emulated"]]
    if emulated:
        verb = "is" if len(emulated) == 1 else "are"
        yield (
            f"{' and '.join(emulated)} {verb} emulated here: the numbers are right, "
            "and the time says nothing."
        )
    if not comparison.native:
        yield (
            "16 bits are faster than float32 on NVIDIA's GPUs from compute capability "
            "7.0 on, and on CPUs with AVX512_BF16 or AMX."
        )


def write_json(comparison: Comparison, path: pathlib.Path) -> None:
    """Write the table, all runs' series, the versions and the options."""
    runs = comparison.runs
    content = {
        "task": comparison.job.task,
        "title": comparison.task.title,
        "hardware": comparison.reason,
        "native": comparison.native,
        "device": runs[0].ready["device"],
        "notes": runs[0].ready["notes"],
        "parameters": runs[0].ready["parameters"],
        "options": dataclasses.asdict(comparison.job)
        | {name: runs[0].ready[name] for name in _RESOLVED},
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "keras_mp": keras_mp.__version__,
        },
        "table": rows(comparison),
        "sentences": sentences(comparison),
        "runs": {run.policy: _series(run) for run in runs},
        "wide": {run.policy: _series(run) for run in comparison.wide},
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text)


def _series(run: Run) -> dict[str, Any]:
    times = [run.step_time(epoch) for epoch in range(len(run.epochs))]
    return {
        "parameters": run.ready["parameters"],
        "epochs": {
            "loss": [run.loss(epoch) for epoch in range(len(run.epochs))],
            "validation": [report["validation"] for report in run.epochs],
            "ms_per_step": [time and time * 1000 for time in times],
        },
        "steps": {
            "loss": run.series("losses"),
            "skipped": run.series("skips"),
            "ms": [seconds * 1000 for seconds in run.series("seconds")],
            "scale": run.series("scales"),
        },
    }
