"""How the numbers of each layer are spread over the exponents of the formats."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_mp.plot import rows, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "output": "what layers return",
    "gradient": "gradients that come back, scaled",
    "weights": "weights",
}


def histograms(
    diagnosis: style.Diagnosed,
    layers: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw how the numbers of each layer are spread over the exponents.

    A row for each layer, darker where more of its numbers are: of what it returned, of
    the scaled gradients that came back, and of its weights. Bars at the top are the
    ranges of the formats, from the smallest to the largest number of each, and dashed
    lines the limits of float16. A cross at the right means that numbers are inf or
    NaN. Layers that are culprits have an arrow.

    Args:
        diagnosis: What `keras_mp.diagnose` returned.
        layers: Paths of the layers to draw; None for all.
        path: A file to write, such as ``"histograms.png"``; or None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``layers`` names a layer that there is not.

    Does not synchronise with the device.

    Example:

    >>> diagnosis = keras_mp.diagnose(model, x, y)
    >>> figure = keras_mp.plot.histograms(diagnosis)
    """
    style.checked("keras_mp.plot.histograms", diagnosis)
    chosen = _chosen(diagnosis, layers)
    by_kind = [[getattr(layer, name) for layer in chosen] for name in _TITLES]
    span = rows.span_of([each for measures in by_kind for each in measures])
    figure, panels = rows.panels_below_formats(
        diagnosis,
        chosen,
        list(_TITLES.values()),
        "exponent n: numbers from 2**n to 2**(n + 1); darker: more of the layer's "
        "numbers; dashed: the limits of float16; cross: inf or NaN",
        span,
    )
    for axes, measures in zip(panels, by_kind, strict=True):
        shares = np.array([_shares(each, span) for each in measures])
        axes.imshow(
            np.ma.masked_equal(shares, 0.0),
            aspect="auto",
            cmap="cividis_r",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest",
            extent=(span.start - 0.5, span.stop - 0.5, len(chosen) - 0.5, -0.5),
        )
        rows.cross_out(axes, [i for i, each in enumerate(measures) if not each.finite])
    return style.written(figure, path)


def _chosen(diagnosis: style.Diagnosed, paths: Sequence[str] | None) -> list[Any]:
    known = {layer.path: layer for layer in diagnosis.layers}
    if paths is None:
        return list(known.values())
    if not isinstance(paths, list | tuple) or not paths or _unknown(paths, known):
        raise ValueError(
            f"keras_mp.plot.histograms(layers={paths!r}) needs paths of layers, "
            f"of which there are {', '.join(map(repr, known))}."
        )
    return [known[path] for path in paths]


def _unknown(paths: Sequence[Any], known: dict[str, Any]) -> bool:
    return any(not isinstance(path, str) or path not in known for path in paths)


def _shares(measures: Any, span: range) -> list[float]:
    """Return the count at each exponent, as a share of the largest count."""
    counts = [measures.exponents.get(exponent, 0) for exponent in span]
    return [count / max(*counts, 1) for count in counts]
