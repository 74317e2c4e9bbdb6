"""The picture of a comparison: the losses, and what the loss scale does below them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from keras_mp.compare.report import Comparison
from keras_mp.compare.runner import Run
from keras_mp.plot import style
from keras_mp.plot.steps import draw_scale


def write(comparison: Comparison, path: pathlib.Path) -> None:
    """Draw the losses of all runs and, below, the loss scale over the steps."""
    runs = comparison.runs
    scaled = [run for run in runs if run.scale]
    figure = style.new_figure(9, 4.2 + 2.4 * len(scaled))
    heights = (5, 3)[: 1 + len(scaled)]
    axes = figure.subplots(
        1 + len(scaled), 1, sharex=True, height_ratios=heights, squeeze=False
    )[:, 0]
    title = comparison.task.title
    figure.suptitle(f"{title}\n{runs[0].ready['device']}", fontsize=11)
    for run, look in zip(runs, style.STYLES, strict=False):
        _draw_loss(axes[0], run, *look)
    axes[0].set(ylabel="loss", yscale=_loss_axis(runs))
    axes[0].legend(frameon=False, title="points: validation; thin: training steps")
    for run, below in zip(scaled, axes[1:], strict=True):
        colour = style.STYLES[runs.index(run)][0]
        scales, skips = (
            np.array(run.series(name), dtype=float) for name in ("scales", "skips")
        )
        draw_scale(below, np.arange(1, len(scales) + 1), scales, skips, colour)
        below.set_ylabel(f"loss scale,\n{run.policy}")
    axes[-1].set(xlabel="training step")
    axes[0].grid(axis="y", alpha=0.25)
    for each in axes:
        style.plain(each)
    style.written(figure, path)


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
