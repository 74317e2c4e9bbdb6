"""The figure of all pictures. Importing it needs matplotlib."""

import io
from typing import Any

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure without a window or a backend, which a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, **SAVED)
        return file.getvalue()


SAVED: dict[str, Any] = {"dpi": 120, "facecolor": "white"}
