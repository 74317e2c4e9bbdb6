"""How a `Diagnosis` is shown in a terminal: lines of at most 100 characters."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from keras_mp import tables
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.recording import Measures

if TYPE_CHECKING:
    from keras_mp.diagnosis.report import Diagnosis, LayerNumbers

#: Characters of a line, and of a layer's name in the table.
_WIDTH, _NAME = 100, 28
_MARK = "> "  # before the layers of culprits
_HEAD = (
    *("layer", "dtype", "|", "output", "room", "ulps"),
    *("|", "gradient", "room", "ulps", "cosine"),
)
_NOTE = """\
output, gradient: the largest magnitude of what the layer returned, and of the scaled
  gradient that came back for it
room: bits from there to the end of the dtype
ulps, cosine: against float32, the error in units in the last place, and the angle"""


def text_of(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text: its head, the culprits, the verdict and a table."""
    parts = [
        _head(diagnosis),
        *_culprits(diagnosis.culprits),
        _wrapped(diagnosis.verdict),
        _table(diagnosis),
    ]
    return "\n\n".join(parts)


def _head(diagnosis: Diagnosis) -> str:
    safe, room = diagnosis.largest_safe_scale, diagnosis.headroom
    largest = "none"
    if safe is not None and room is not None:
        largest = f"{tables.scale(safe)} ({_room(room)})"
    rows = [
        ("loss", f"{diagnosis.loss:.6g}"),
        ("loss scale", tables.scale(diagnosis.scale)),
        ("largest safe scale", largest),
        ("lost to underflow", _lost(diagnosis)),
    ]
    return tables.aligned(rows, numbers=False)


def _lost(diagnosis: Diagnosis) -> str:
    if diagnosis.underflow is None:
        return "unknown, because the loss is not finite"
    return f"{diagnosis.underflow:.2%} of the gradients"


def _room(bits: float) -> str:
    if not bits:
        return "no room left"
    many = f"{abs(bits):g} bit" + ("s" if abs(bits) != 1 else "")
    return f"{many} of room" if bits > 0 else f"the loss scale is {many} too large"


def _culprits(culprits: tuple[Culprit, ...]) -> Iterator[str]:
    if not culprits:
        return
    lines = ["1 culprit:" if len(culprits) == 1 else f"{len(culprits)} culprits:"]
    for index, culprit in enumerate(culprits, 1):
        lines.append(_wrapped(f"{index}. {culprit}", "   "))
    yield "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(diagnosis: Diagnosis) -> str:
    marked = {culprit.layer for culprit in diagnosis.culprits}
    tree = tables.tree(layer.path for layer in diagnosis.layers)
    names = [tables.short(name, _NAME) for name in tree]
    rows = [
        _row(layer, name, layer.path in marked)
        for layer, name in zip(diagnosis.layers, names, strict=True)
    ]
    note = _NOTE + (f"\n{_MARK}a culprit" if marked else "")
    return f"{tables.aligned([_indented(_HEAD), *rows])}\n\n{note}"


def _indented(head: tuple[str, ...]) -> list[tables.Cell]:
    return [" " * len(_MARK) + head[0], *head[1:]]


def _row(layer: LayerNumbers, name: str, marked: bool) -> list[tables.Cell]:
    out, back = layer.output_error, layer.gradient_error
    return [
        (_MARK if marked else " " * len(_MARK)) + name,
        layer.dtype or None,
        "|",
        _largest(layer.output),
        _finite(layer.headroom, ".0f"),
        _number(out and out.ulps),
        "|",
        _largest(layer.gradient),
        _finite(layer.gradient_headroom, ".0f"),
        _number(back and back.ulps),
        _finite(back and back.cosine, ".4f"),
    ]


def _largest(measures: Measures) -> tables.Cell:
    if measures.nans or measures.infs:
        return "NaN" if measures.nans else "inf"
    return _number(measures.largest) if measures.size else None


def _number(value: float | None) -> tables.Cell:
    """Return a number above 0 with two or three digits; None if it is not finite."""
    if not value or 1e-3 <= value < 1e5:
        digits = 2 - math.floor(math.log10(value)) if value else 0
        return _finite(value, f",.{max(0, min(digits, 4))}f")
    return _finite(value, ".1e")


def _finite(value: float | None, form: str) -> tables.Cell:
    return tables.number(value, form) if value is None or math.isfinite(value) else None
