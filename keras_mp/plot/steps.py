"""The loss scale over the steps of a run, with the steps that were skipped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_mp.plot import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CALLED = "keras_mp.plot.scale"


def scale(run: Any, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the loss scale over the steps of a run, and where steps were skipped.

    Args:
        run: A `keras_mp.callbacks.ScalerStats` after ``fit``, with a point for each of
            its readings; the ``History`` of a ``fit`` with one, or its ``history``,
            with a point for each epoch; a list of what ``optimizer.stats()`` returned;
            or a list of scales, one for each step, in which a fall is a skipped step.
        path: A file to write, such as ``"scale.png"``; or None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``run`` is none of these.
        ValueError: ``run`` holds no loss scale.

    Does not synchronise with the device.

    Example:

    >>> stats = keras_mp.callbacks.ScalerStats(frequency=1)
    >>> history = model.fit(x, y, verbose=0, callbacks=[stats])
    >>> figure = keras_mp.plot.scale(stats)
    """
    steps, scales, skips = _series(run)
    figure = style.new_figure(9, 3.6)
    axes = figure.subplots()
    draw_scale(axes, steps, scales, skips, style.BLUE)
    axes.set(xlabel="training step", ylabel="loss scale")
    style.plain(axes)
    return style.written(figure, path)


def draw_scale(axes: Any, steps: Any, scales: Any, skips: Any, colour: str) -> None:
    """Draw a loss scale after each of ``steps``, and a cross where steps were skipped.

    Args:
        axes: Axes of matplotlib.
        steps: The numbers of the steps.
        scales: The scale after each of them.
        skips: How many were skipped up to each of them, since the one before.
        colour: The colour of the line.
    """
    steps, scales, skips = map(np.asarray, (steps, scales, skips))
    alone = {"marker": "o"} if len(steps) == 1 else {}
    axes.step(steps, scales, where="post", color=colour, linewidth=1.6, **alone)
    axes.set_yscale("log", base=2)
    axes.margins(y=0.2)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", alpha=0.25)
    # A step is skipped because of the scale before it, which was too large.
    before = np.insert(scales, 0, scales[0])[:-1]
    skipped = skips > 0
    if skipped.any():
        axes.plot(
            steps[skipped],
            before[skipped],
            "x",
            color=style.BLACK,
            markersize=7,
            markeredgewidth=1.6,
            clip_on=False,
            label=f"{_steps(int(skips.sum()))} skipped, in which nothing changed",
        )
        axes.legend(frameon=False, loc="lower right")


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number:,} steps"


def _series(run: Any) -> tuple[Any, Any, Any]:
    """Return the steps, the scale after each, and how many were skipped before it."""
    names = ("steps", "scale", "skipped")
    run = getattr(run, "readings", getattr(run, "history", run))
    if isinstance(run, Mapping):
        missing = [name for name in names if f"scaler_{name}" not in run]
        if missing:
            raise ValueError(
                f"{_CALLED}(history): the history has no 'scaler_{missing[0]}'. Give "
                "`fit` the callback keras_mp.callbacks.ScalerStats()."
            )
        return _counted(*(run[f"scaler_{name}"] for name in names))
    wrong = TypeError(
        f"{_CALLED}(run) needs a ScalerStats, a History, a list of "
        f"`optimizer.stats()` or a list of scales. Got a {type(run).__name__}."
    )
    is_array = isinstance(run, np.ndarray) and run.ndim
    if not (isinstance(run, list | tuple) or is_array):
        raise wrong
    if not len(run):
        raise ValueError(
            f"{_CALLED}(run) needs a step or a reading at least. Got an empty list."
        )
    if isinstance(run[0], Mapping):
        return _counted(*([each[name] for each in run] for name in names))
    try:
        scales = np.asarray(run, float)
    except (TypeError, ValueError):
        raise wrong from None
    if scales.ndim != 1:
        raise wrong
    return np.arange(1, len(scales) + 1), scales, np.diff(scales, prepend=scales[0]) < 0


def _counted(steps: Any, scales: Any, skipped: Any) -> tuple[Any, Any, Any]:
    return steps, scales, np.diff(skipped, prepend=0)
