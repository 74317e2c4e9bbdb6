"""What remains of a comparison: the table, the JSON file and the picture."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform

import keras
import numpy as np
import tensorflow as tf

import keras_mp
from keras_mp.compare.runner import Run, number, speed_up, speed_ups
from keras_mp.compare.tasks import Job

MIB = 2**20
STYLES = (("tab:blue", "-", "o"), ("tab:orange", "--", "x"))  # for curves that meet


@dataclasses.dataclass
class Comparison:
    """Everything that is reported.

    Attributes:
        job: the options.
        title: the task in words.
        policy: the policy compared with float32, or float32 if that was advised.
        reason: why this policy.
        runs: float32's first; the other's, if there was one.
    """

    job: Job
    title: str
    policy: str
    reason: str
    runs: list[Run]


def rows(runs: list[Run]) -> list[dict]:
    """The table's numbers, one row for each run; None where there is no number.

    Times are in milliseconds, memory in MiB.
    """
    first = _validation(runs[0])
    table = []
    for run in runs:
        last, value, time = run.epochs[-1], _validation(run), run.step_time()
        compared = run is not runs[0]
        known = compared and None not in (first, value)
        table.append(
            {
                "policy": run.policy,
                "metric": run.metric,
                "validation": value,
                "difference": value - first if known else None,
                "ms_per_step": time and time * 1000,
                "speed_up": speed_up(runs) if compared else None,
                "peak_memory_mib": last["peak_memory"] and last["peak_memory"] / MIB,
                "final_scale": last["scales"][-1],
                "steps_skipped": last["skipped"],
            }
        )
    return table


def _validation(run: Run) -> float | None:
    return run.epochs[-1]["validation"].get(run.metric)


def table(runs: list[Run]) -> str:
    """The rows as aligned text."""
    metric = f"val {runs[0].metric}"[:20]
    head = ["", metric, "difference", "ms/step", "speed-up", "peak memory"]
    lines = [head + ["final scale", "skipped"]]
    for row in rows(runs):
        lines.append(
            [
                row["policy"],
                number(row["validation"], ".4f"),
                number(row["difference"], "+.4f"),
                number(row["ms_per_step"], ".1f"),
                number(row["speed_up"], ".2f", "x"),
                number(row["peak_memory_mib"], ",.0f", " MiB"),
                number(row["final_scale"], ",g"),
                str(row["steps_skipped"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def write_json(comparison: Comparison, path: pathlib.Path) -> None:
    """Write the table, both runs' series, the versions and the options."""
    runs = comparison.runs
    content = {
        "task": comparison.job.task,
        "title": comparison.title,
        "policy": comparison.policy,
        "policy_reason": comparison.reason,
        "device": runs[0].ready["device"],
        "notes": runs[0].ready["notes"],
        "parameters": runs[0].ready["parameters"],
        "options": dataclasses.asdict(comparison.job)
        | {name: runs[0].ready[name] for name in ("epochs", "batch_size")},
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "keras_mp": keras_mp.__version__,
        },
        "table": rows(runs),
        "speed_up_per_epoch": speed_ups(runs) if len(runs) > 1 else [],
        "runs": {run.policy: _series(run) for run in runs},
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _series(run: Run) -> dict:
    times = [run.step_time(epoch) for epoch in range(len(run.epochs))]
    return {
        "epochs": {
            "loss": [run.loss(epoch) for epoch in range(len(run.epochs))],
            "validation": [report["validation"] for report in run.epochs],
            "ms_per_step": [time and time * 1000 for time in times],
        },
        "steps": {
            "loss": run.series("losses"),
            "ms": [seconds * 1000 for seconds in run.series("seconds")],
            "scale": run.series("scales"),
        },
    }


def write_plot(comparison: Comparison, path: pathlib.Path) -> None:
    """Draw the losses of all runs and, below, the loss scale over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = comparison.runs
    scaled = None not in runs[-1].series("scales")
    figure, (above, below) = pyplot.subplots(
        2,
        1,
        figsize=(9, 7),
        sharex=True,
        height_ratios=(2, 1) if scaled else (6, 1),
        layout="constrained",
    )
    names = " and ".join(run.policy for run in runs)
    figure.suptitle(f"{comparison.title}\n{names} on {runs[0].ready['device']}")
    for run, style in zip(runs, STYLES, strict=False):
        _draw_loss(above, run, *style)
    above.set(ylabel="loss", yscale=_loss_scale(runs))
    above.grid(alpha=0.3)
    above.legend()
    _draw_scale(below, runs[-1])
    below.set(xlabel="training step", ylabel="loss scale")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _loss_scale(runs: list[Run]) -> str:
    """Logarithmic if the losses are positive and span more than a factor of ten."""
    losses = [loss for run in runs for loss in run.series("losses") if loss is not None]
    return "log" if losses and 0 < 10 * min(losses) < max(losses) else "linear"


def _draw_loss(axes, run: Run, colour: str, line: str, marker: str) -> None:
    losses = np.array(run.series("losses"), dtype=float)
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, line, color=colour, alpha=0.5, linewidth=1)
    ends = np.cumsum([len(report["losses"]) for report in run.epochs])
    validation = [report["validation"].get("loss") for report in run.epochs]
    axes.plot(
        ends,
        np.array(validation, dtype=float),
        line + marker,
        color=colour,
        fillstyle="none",
        label=f"{run.policy}: validation (points), training steps (thin)",
    )


def _draw_scale(axes, run: Run) -> None:
    scales = run.series("scales")
    if None in scales:
        reason = "" if run.policy == "float32" else ": it has float32's range"
        axes.text(
            0.5,
            0.5,
            f"{run.policy} needs no loss scaling{reason}",
            transform=axes.transAxes,
            ha="center",
            va="center",
        )
        axes.set_yticks([])
        return
    axes.step(np.arange(1, len(scales) + 1), scales, where="post", color="tab:orange")
    axes.set_yscale("log", base=2)
    axes.grid(alpha=0.3)
    skipped = [
        step for step, loss in enumerate(run.series("losses"), 1) if loss is None
    ]
    if skipped:
        axes.plot(
            skipped, [scales[step - 1] for step in skipped], "rx", label="skipped"
        )
        axes.legend()
