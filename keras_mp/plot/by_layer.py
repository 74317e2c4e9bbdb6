"""The ranges and the errors of the numbers of each layer of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_mp.plot import rows, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = ("forward: what layers return", "backward: gradients that come back, scaled")


def ranges(
    diagnosis: style.Diagnosed, path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw the range of each layer's numbers beside the ranges of the formats.

    On the left what layers return, on the right the scaled gradients that come back: a
    bar from the smallest to the largest magnitude of each layer, 0 apart. A cross at
    the right means that numbers are inf or NaN. Bars at the top are the ranges of the
    formats, and dashed lines the limits of float16. Layers that are culprits have an
    arrow.

    Args:
        diagnosis: What `keras_mp.diagnose` returned.
        path: A file to write, such as ``"ranges.png"``; or None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``diagnosis`` is none, or ``path`` is no path.
        OSError: ``path`` cannot be written; what was there is left as it was.

    Does not synchronise with the device.

    Example:

    >>> figure = keras_mp.plot.ranges(keras_mp.diagnose(model, x, y))
    """
    style.checked("keras_mp.plot.ranges", diagnosis)
    layers = diagnosis.layers
    both = [[layer.output for layer in layers], [layer.gradient for layer in layers]]
    figure, panels = rows.panels_below_formats(
        diagnosis,
        layers,
        _TITLES,
        "magnitude, as a power of two; dashed: the limits of float16; "
        "cross: numbers that are inf or NaN",
        rows.span_of([*both[0], *both[1]]),
    )
    for axes, measures in zip(panels, both, strict=True):
        _draw_ranges(axes, measures)
    return style.written(figure, path)


def errors(
    diagnosis: style.Diagnosed, path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw how far each layer's numbers are from float32, forward and backward.

    On the left what layers return, on the right the gradients that come back: the norm
    of the difference over the norm of the float32 numbers. A cross at the right means
    that the error is not finite, and the dashed line is an error as large as the
    numbers themselves. Layers that are culprits have an arrow.

    Args:
        diagnosis: What `keras_mp.diagnose` returned for a model in low precision.
        path: A file to write, such as ``"errors.png"``; or None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The model computes in float32, so that there is no error.

    Does not synchronise with the device.

    Example:

    >>> figure = keras_mp.plot.errors(keras_mp.diagnose(model, x, y))
    """
    style.checked("keras_mp.plot.errors", diagnosis)
    layers = diagnosis.layers
    both = [
        [error and error.relative for error in found]
        for found in (
            [layer.output_error for layer in layers],
            [layer.gradient_error for layer in layers],
        )
    ]
    if all(error is None for error in both[0]):
        raise ValueError(
            "keras_mp.plot.errors(diagnosis) needs the diagnosis of a model in low "
            "precision. This one computes in float32, and has no error against it."
        )
    figure, panels = rows.panels(
        diagnosis,
        layers,
        _TITLES,
        "relative error against float32; dashed: as large as the numbers themselves; "
        "cross: not finite",
    )
    least = min(filter(_is_shown, [*both[0], *both[1]]), default=1e-4) / 2
    for axes, found in zip(panels, both, strict=True):
        _draw_errors(axes, found, least)
    return style.written(figure, path)


def _draw_ranges(axes: Any, measures: Sequence[Any]) -> None:
    for row, each in enumerate(measures):
        if each.exponents:
            low, high = math.log2(each.smallest), math.log2(each.largest)
            width = max(high - low, 0.3)  # one number is to be seen, too
            axes.barh(row, width, left=low, height=0.6, color=style.BLUE)
    rows.cross_out(axes, [row for row, each in enumerate(measures) if not each.finite])


def _draw_errors(axes: Any, found: Sequence[float | None], least: float) -> None:
    shown = {row: error for row, error in enumerate(found) if _is_shown(error)}
    axes.set_xscale("log")
    axes.hlines(list(shown), least, list(shown.values()), color=style.BLUE, linewidth=1)
    axes.plot(list(shown.values()), list(shown), "o", color=style.BLUE, markersize=3.5)
    axes.axvline(1.0, color=style.GREY, linestyle="--", linewidth=1.0)
    axes.set_xlim(left=least)
    lost = [
        row
        for row, error in enumerate(found)
        if error is not None and not math.isfinite(error)
    ]
    rows.cross_out(axes, lost)


def _is_shown(error: float | None) -> bool:
    """Return whether an error can be shown on a logarithmic axis."""
    return error is not None and 0 < error < math.inf
