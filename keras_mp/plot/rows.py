"""Panels with a row for each layer, and the ranges of the formats above them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_mp import tables
from keras_mp.plot import style
from keras_mp.recording import FORMATS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Inches of a row, of a format's bar, of what is around the rows, and of the width.
_ROW, _BAR, _AROUND, _WIDTH = 0.16, 0.2, 1.0, 11.0
#: Characters of a layer's name, and the points of each.
_NAME, _POINTS = 44, 4.3


def panels(
    diagnosis: style.Diagnosed, layers: Sequence[Any], titles: Sequence[str], label: str
) -> tuple[Figure, list[Any]]:
    """Return a figure with a panel for each title, side by side.

    Args:
        diagnosis: The diagnosis, whose culprits are marked.
        layers: A row for each.
        titles: The titles of the panels.
        label: What the axis shows.
    """
    figure = style.new_figure(_WIDTH, _AROUND + _ROW * len(layers))
    found = list(figure.subplots(1, len(titles), sharex=True, squeeze=False)[0])
    _style_panels(found, titles)
    figure.supxlabel(label, fontsize=8)
    _name_rows(found, layers, {culprit.layer for culprit in diagnosis.culprits})
    return figure, found


def panels_below_formats(
    diagnosis: style.Diagnosed,
    layers: Sequence[Any],
    titles: Sequence[str],
    label: str,
    span: range,
) -> tuple[Figure, list[Any]]:
    """Return a figure as `panels` does, over exponents, with the formats' ranges above.

    Dashed lines are the limits of float16.

    Args:
        diagnosis: As of `panels`.
        layers: As of `panels`.
        titles: As of `panels`.
        label: As of `panels`.
        span: The exponents to show.
    """
    bars, rows = _BAR * len(FORMATS), _ROW * max(len(layers), 2)
    figure = style.new_figure(_WIDTH, _AROUND + bars + rows)
    axes = figure.subplots(
        2, len(titles), sharex=True, squeeze=False, height_ratios=(bars, rows)
    )
    for above, below in axes.T:
        _draw_formats(above, labelled=above is axes[0, 0])
        limit = FORMATS["float16"]
        for edge in (limit.smallest, limit.largest):
            style_line = {"color": style.GREY, "linestyle": "--", "linewidth": 1.0}
            below.axvline(math.log2(edge), **style_line)
        below.set_xlim(span.start - 0.5, span.stop - 0.5)
        style.plain(above)
    found = list(axes[1])
    _style_panels(found, [""] * len(titles))
    for above, title in zip(axes[0], titles, strict=True):
        above.set_title(title, fontsize=9)
    figure.supxlabel(label, fontsize=8)
    _name_rows(found, layers, {culprit.layer for culprit in diagnosis.culprits})
    return figure, found


def _style_panels(found: Sequence[Any], titles: Sequence[str]) -> None:
    for axes, title in zip(found, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_axisbelow(True)
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="x", labelsize=8)
        style.plain(axes)


def _name_rows(found: Sequence[Any], layers: Sequence[Any], culprits: set[str]) -> None:
    """Label the rows of the first panel with the names of layers, from the top down."""
    marked = [layer.path in culprits for layer in layers]
    tree = tables.tree(layer.path for layer in layers)
    names = [
        ("→ " if mark else "  ") + tables.short(name, _NAME)
        for mark, name in zip(marked, tree, strict=True)
    ]
    for axes in found:
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_yticks(range(len(layers)), [""] * len(layers))
        axes.tick_params(axis="y", length=0)
    found[0].set_yticks(range(len(layers)), names, fontsize=7, family="monospace")
    found[0].tick_params(axis="y", pad=_POINTS * max(map(len, names), default=0))
    for mark, label in zip(marked, found[0].get_yticklabels(), strict=True):
        label.set_horizontalalignment("left")
        if mark:
            label.set_color(style.VERMILION)


def _draw_formats(axes: Any, labelled: bool) -> None:
    """Draw the range of each format as a bar."""
    for row, form in enumerate(FORMATS.values()):
        low, high = math.log2(form.smallest), math.log2(form.largest)
        axes.barh(row, high - low, left=low, height=0.55, color=style.GREEN)
    names = list(FORMATS) if labelled else [""] * len(FORMATS)
    axes.set_yticks(range(len(FORMATS)), names, fontsize=7)
    axes.set_ylim(len(FORMATS) - 0.5, -0.5)
    axes.tick_params(length=0)


def cross_out(axes: Any, rows: Sequence[int]) -> None:
    """Draw a cross at the right end of each of ``rows``."""
    if rows:
        axes.plot(
            [1.0] * len(rows),
            rows,
            "x",
            transform=axes.get_yaxis_transform(),
            color=style.VERMILION,
            markersize=4.5,
            markeredgewidth=1.4,
            clip_on=False,
        )


def span_of(several: Sequence[Any]) -> range:
    """Return the exponents to show: float16's, and all that measures have."""
    form = FORMATS["float16"]
    low, high = math.floor(math.log2(form.smallest)), form.first_beyond
    for measures in several:
        low, high = min([low, *measures.exponents]), max([high, *measures.exponents])
    return range(low - 1, high + 2)
