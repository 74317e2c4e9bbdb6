"""Numbers as Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def number(value: float | None, form: str = ".2f") -> str:
    """The number in the given form; a dash if there is none."""
    return "–" if value is None else format(value, form)
