"""The results as Markdown and as JSON."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterable

from benchmarks import suite
from conformance.bounds import failure, ulps_text
from conformance.measure import Error, Result
from keras_mp.tables import markdown

DOCUMENTS = pathlib.Path(__file__).parents[1] / "docs"

BEGIN, END = "<!-- conformance -->\n", "\n<!-- end -->"

_SHORT = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
_LONG = {"keras": "Keras alone", "keras_mp": "keras_mp"}

_LEGEND = (
    "Each entry is the worst of all scenarios, forward / backward, in units in the "
    "last place of the compute dtype. ✗ fails, with the first scenario that does and "
    "how: values that are not finite where float32's are and 16 bits could hold them, "
    "an error above the bound, or an exception. `+n` counts values that float32 has "
    "and no 16-bit number can hold; they count as no failure."
)


def record(results: Iterable[Result]) -> dict:
    """Return the results and where they come from, as plain values.

    Results are by kind, case, scenario, policy and mode: how many are not finite, how
    many are beyond 16 bits, and units in the last place, forward and then backward;
    or the exception.
    """
    nested = {}
    for result in results:
        place = nested
        for key in (result.kind, result.title, result.scenario, result.policy):
            place = place.setdefault(key, {})
        place[result.mode] = result.error or [
            *_plain(result.forward),
            *_plain(result.backward),
        ]
    return {"environment": suite.environment(), "results": nested}


def _plain(error):
    return error.nonfinite, error.beyond, float(f"{error.ulps:.3g}")


def results_of(record: dict) -> list[Result]:
    """Return the results in a record."""
    return [
        _result((kind, title, scenario, policy, mode), values)
        for kind, cases in record["results"].items()
        for title, scenarios in cases.items()
        for scenario, policies in scenarios.items()
        for policy, modes in policies.items()
        for mode, values in modes.items()
    ]


def _result(place, values):
    if isinstance(values, str):
        return Result(*place, Error(), Error(), values)
    return Result(*place, Error(*values[:3]), Error(*values[3:]))


def write(path: pathlib.Path, record: dict) -> None:
    """Write a record as JSON, a line for each case: a change shows what changed."""
    kinds = []
    for kind, cases in record["results"].items():
        lines = ",\n".join(
            f"  {json.dumps(title)}: {json.dumps(scenarios, ensure_ascii=False)}"
            for title, scenarios in cases.items()
        )
        kinds.append(f"{json.dumps(kind)}: {{\n{lines}\n}}")
    environment = json.dumps(record["environment"])
    body = ",\n".join(kinds)
    path.write_text(f'{{"environment": {environment},\n"results": {{\n{body}\n}}}}\n')


def write_documents(results: Iterable[Result]) -> None:
    """Write ``docs/conformance.json`` and, in ``docs/conformance.md``, the tables."""
    found = record(results)
    write(DOCUMENTS / "conformance.json", found)
    page = DOCUMENTS / "conformance.md"
    page.write_text(with_block(page.read_text(), document(found)))


def with_block(page: str, block: str) -> str:
    """Return ``page`` with ``block`` between its marks.

    Example:

    >>> with_block("<!-- conformance -->\\nold\\n<!-- end -->", "new")
    '<!-- conformance -->\\nnew\\n<!-- end -->'
    """
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"The page has no {BEGIN.strip()} ... {END.strip()}.")
    return f"{before}{BEGIN}{block}{END}{after}"


def document(record: dict) -> str:
    """Return the summary and a table for each kind, as Markdown."""
    results = results_of(record)
    machine = suite.heading(record["environment"])
    parts = [summary(results), _LEGEND, f"Measured on {machine}."]
    for kind in dict.fromkeys(result.kind for result in results):
        of_kind = [result for result in results if result.kind == kind]
        parts += [f"## keras.{kind}", table(of_kind)]
    return "\n\n".join(parts)


def summary(results: list[Result]) -> str:
    """Return a table that counts the cases that fail, by kind."""
    columns = _columns(results)
    kinds = dict.fromkeys(result.kind for result in results)
    head = ["cases that fail", "cases", *map(_heading, columns)]
    rows = []
    for kind in kinds:
        failing = [
            {r.title for r in results if r.kind == kind and _fails_in(r, column)}
            for column in columns
        ]
        cases = len({r.title for r in results if r.kind == kind})
        rows.append([kind, str(cases), *(str(len(titles)) for titles in failing)])
    return markdown(head, rows)


def table(results: list[Result]) -> str:
    """Return a table with a row for each case of one kind."""
    columns = _columns(results)
    cells = collections.defaultdict(list)
    for result in results:
        cells[result.title, _column(result)].append(result)
    rows = [
        [title, *(_cell(cells[title, column]) for column in columns)]
        for title in sorted({r.title for r in results}, key=lambda t: (t.lower(), t))
    ]
    return markdown(["", *map(_heading, columns)], rows)


def _column(result):
    return result.policy, result.mode


def _columns(results):
    return list(dict.fromkeys(map(_column, results)))


def _heading(column):
    policy, mode = column
    return f"{_SHORT[policy]}, {_LONG[mode]}"


def _fails_in(result, column):
    return _column(result) == column and failure(result) is not None


def _cell(results):
    """Return the entry of one case under one policy, with or without keras_mp."""
    if not results:
        return None
    failing = [result for result in results if failure(result) is not None]
    forward, backward = Error(), Error()
    for result in results:
        forward |= result.forward
        backward |= result.backward
    beyond = forward.beyond + backward.beyond
    more = f" +{beyond}" if beyond else ""
    if failing:
        first = failing[0]
        others = f" and {len(failing) - 1} more" if failing[1:] else ""
        return f"✗ {first.scenario}: {failure(first)}{others}{more}"
    return f"{ulps_text(forward.ulps)} / {ulps_text(backward.ulps)}{more}"
