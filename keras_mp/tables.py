"""Tables: aligned text for terminals, Markdown for documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

#: The text of an entry; None where there is no value, which is shown as a dash.
Cell = str | None

GAP = "  "  # between columns of text


def number(value: float | None, form: str = ".2f", unit: str = "") -> Cell:
    """Return a number in the given form with its unit; None if there is none."""
    return None if value is None else format(value, form) + unit


def scale(value: float) -> str:
    """Return a loss scale in digits, or as a power of two if these are many.

    Example:

    >>> scale(32768.0), scale(2.0**24), scale(0.5), scale(0.3)
    ('32768', '2**24', '2**-1', '0.3')
    """
    mantissa, exponent = math.frexp(value)
    if mantissa == 0.5 and not 1 <= value < 1e6:
        return f"2**{exponent - 1}"
    return f"{value:.0f}" if value < 1e6 and value.is_integer() else f"{value:g}"


def tree(paths: Iterable[str]) -> Iterator[str]:
    """Yield each path without those before it that it is inside of, but indented.

    Example:

    >>> list(tree(["net", "net/block", "net/block/dense", "net/head"]))
    ['net', '  block', '    dense', '  head']
    """
    around: list[str] = []
    for path in paths:
        while around and not path.startswith(f"{around[-1]}/"):
            around.pop()
        start = len(around[-1]) + 1 if around else 0
        yield "  " * len(around) + path[start:]
        around.append(path)


def short(name: str, longest: int) -> str:
    """Return a name without its middle if it has more characters than ``longest``.

    Example:

    >>> short("a_layer", 7), short("a_long_layer", 7)
    ('a_layer', 'a_l…yer')
    """
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def aligned(rows: Iterable[Sequence[Cell]], numbers: bool = True) -> str:
    """Return rows as text in columns.

    Args:
        rows: The entries, row by row, a head included.
        numbers: Whether all columns but the first are numbers, aligned to the right.

    Example:

    >>> print(aligned([["", "loss"], ["float32", "0.5"], ["mixed_float16", None]]))
                   loss
    float32         0.5
    mixed_float16     -
    """
    rows = list(rows)
    widths = [
        max(1 if cell is None else len(cell) for cell in column)
        for column in zip(*rows, strict=True)
    ]
    return "\n".join(line(row, widths, numbers) for row in rows)


def line(row: Sequence[Cell], widths: Sequence[int], numbers: bool = True) -> str:
    """Return one row as text, where the widths of the columns are known.

    Args:
        row: The entries.
        widths: The number of characters of each column.
        numbers: As of `aligned`.

    Example:

    >>> line(["float32", "0.5"], [8, 5])
    'float32     0.5'
    """
    align = str.rjust if numbers else str.ljust
    first, *others = ["-" if cell is None else cell for cell in row]
    cells = [first.ljust(widths[0]), *map(align, others, widths[1:])]
    return GAP.join(cells).rstrip()


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: bool = True
) -> str:
    """Return a Markdown table.

    Args:
        head: The titles of the columns.
        rows: The entries, row by row.
        numbers: Whether all columns but the first are numbers, aligned to the right.

    Example:

    >>> print(markdown(["policy", "loss"], [["float32", "0.5"], ["float16", None]]))
    | policy | loss |
    | --- | ---: |
    | float32 | 0.5 |
    | float16 | – |
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    lines = [
        " | ".join("–" if cell is None else cell for cell in row)
        for row in [head, rule, *rows]
    ]
    return "\n".join(f"| {line} |" for line in lines)
