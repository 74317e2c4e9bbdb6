"""The picture of a comparison: the losses, and what the loss scale does below them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from keras_mp.compare.report import Comparison
from keras_mp.compare.runner import Run

# Colour, line and marker of each run in turn: colours that the colour-blind can tell
# apart (Okabe and Ito, "Color Universal Design", 2008), and lines and markers that
# differ in a black and white print too.
STYLES = (("#000000", "-", "o"), ("#0072B2", "--", "s"), ("#D55E00", ":", "^"))


def write(comparison: Comparison, path: pathlib.Path) -> None:
    """Draw the losses of all runs and, below, the loss scale over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = comparison.runs
    scaled = [run for run in runs if run.scale]
    figure, axes = pyplot.subplots(
        1 + len(scaled),
        1,
        figsize=(9, 4.2 + 2.4 * len(scaled)),
        sharex=True,
        height_ratios=(5, 3)[: 1 + len(scaled)],
        squeeze=False,
        layout="constrained",
    )
    axes = axes[:, 0]
    title = comparison.task.title
    figure.suptitle(f"{title}\n{runs[0].ready['device']}", fontsize=11)
    for run, style in zip(runs, STYLES, strict=False):
        _draw_loss(axes[0], run, *style)
    axes[0].set(ylabel="loss", yscale=_loss_axis(runs))
    axes[0].legend(frameon=False, title="points: validation; thin: training steps")
    for run, below in zip(scaled, axes[1:], strict=True):
        _draw_scale(below, run, STYLES[runs.index(run)][0])
    axes[-1].set(xlabel="training step")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", alpha=0.25)
    figure.savefig(path, dpi=120, facecolor="white")
    pyplot.close(figure)


def _loss_axis(runs: list[Run]) -> str:
    """Return "log" if all losses are positive and span more than a factor of ten."""
    losses = [loss for run in runs for loss in run.series("losses") if loss is not None]
    return "log" if losses and 0 < 10 * min(losses) < max(losses) else "linear"


def _draw_loss(axes: Any, run: Run, colour: str, line: str, marker: str) -> None:
    losses = np.array(run.series("losses"), dtype=float)
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=colour, alpha=0.35, linewidth=0.8)
    ends = np.cumsum([len(report["losses"]) for report in run.epochs])
    validation = [report["validation"].get("loss") for report in run.epochs]
    axes.plot(
        ends,
        np.array(validation, dtype=float),
        line,
        marker=marker,
        color=colour,
        markerfacecolor="white",
        markersize=6,
        linewidth=1.6,
        label=run.policy,
    )


def _draw_scale(axes: Any, run: Run, colour: str) -> None:
    scales = np.array(run.series("scales"), dtype=float)
    steps = np.arange(1, len(scales) + 1)
    axes.step(steps, scales, where="post", color=colour, linewidth=1.6)
    axes.set_yscale("log", base=2)
    axes.margins(y=0.2)
    axes.set_ylabel(f"loss scale,\n{run.policy}")
    # A step is skipped because of the scale before it, which was too large.
    skipped = steps[np.array(run.series("skips"), dtype=bool)]
    too_large = np.insert(scales, 0, scales[0])[skipped - 1]
    if len(skipped):
        axes.plot(
            skipped,
            too_large,
            "x",
            color="black",
            markersize=7,
            markeredgewidth=1.6,
            clip_on=False,
            label="step skipped: gradients overflowed, nothing changed",
        )
        axes.legend(frameon=False, loc="lower right")
