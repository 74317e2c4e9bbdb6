"""What all pictures share: colours, lines, axes without clutter, files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart (Okabe and Ito, "Color Universal Design",
# 2008).
BLACK, BLUE, VERMILION, GREEN, GREY = (
    "#000000",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#999999",
)
#: Colour, line and marker of each series in turn; lines and markers differ in a black
#: and white print too.
STYLES = ((BLACK, "-", "o"), (BLUE, "--", "s"), (VERMILION, ":", "^"))


class Diagnosed(Protocol):
    """What pictures read of a `keras_mp.Diagnosis`."""

    @property
    def layers(self) -> tuple[Any, ...]: ...

    @property
    def culprits(self) -> tuple[Any, ...]: ...


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from keras_mp.plot.figure import NotebookFigure
    except ImportError as error:
        raise ImportError(
            "keras_mp.plot draws with matplotlib, which is not installed. Install it "
            "with: pip install matplotlib"
        ) from error
    return NotebookFigure(figsize=(width, height), layout="constrained")


def plain(axes: Any) -> None:
    """Leave out the lines above and to the right of the axes."""
    axes.spines[["top", "right"]].set_visible(False)


def written(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Return ``figure``, written to ``path`` if there is one."""
    from keras_mp.plot.figure import SAVED

    if path is not None:
        figure.savefig(path, **SAVED)
    return figure
