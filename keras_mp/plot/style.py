"""What all pictures share: colours, lines, axes without clutter, files."""

from __future__ import annotations

import io
import os
import pathlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from keras_mp.saved_files import checked_path, written_whole

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


@runtime_checkable
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


def checked(called: str, diagnosis: Any) -> None:
    """Check that ``diagnosis``, which ``called`` was given, can be drawn.

    Raises:
        TypeError: It is no diagnosis.
    """
    if isinstance(diagnosis, type) or not isinstance(diagnosis, Diagnosed):
        raise TypeError(
            f"{called}(diagnosis) needs what keras_mp.diagnose returned. Got a "
            f"{type(diagnosis).__name__}."
        )


def plain(axes: Any) -> None:
    """Leave out the lines above and to the right of the axes."""
    axes.spines[["top", "right"]].set_visible(False)


def written(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Return ``figure``, written to ``path`` if there is one.

    Raises:
        TypeError: ``path`` is no path.
    """
    from keras_mp.plot.figure import SAVED

    if path is None:
        return figure
    if hasattr(path, "write"):  # a file that is open
        figure.savefig(path, **SAVED)
        return figure
    name, suffix = os.path.splitext(checked_path("keras_mp.plot", "path", path))
    suffix = suffix if suffix.strip(".") else ".png"  # as matplotlib has it
    drawn = io.BytesIO()
    figure.savefig(drawn, format=suffix[1:], **SAVED)
    with written_whole(pathlib.Path(name + suffix)) as temporary:
        temporary.write_bytes(drawn.getbuffer())
    return figure
