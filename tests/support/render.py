"""The tables: ``docs/support.json``, and what is made of it for people.

A record is the content of that file: the versions it was made with, and for each place
in the matrix the outcomes of ours and of Keras's own class, with the reasons of those
that did not pass.
"""

import collections
import json
import pathlib
import re

from keras_mp.tables import markdown

from . import cells

ROOT = pathlib.Path(__file__).parents[2]
RECORD = ROOT / "docs" / "support.json"
FULL = ROOT / "docs" / "support.md"

COMMAND = "python -m tests.support --write"

_SIGNS = {
    "passed": "✓",
    "refused": "refused",
    "no such option": "–",
    "failed": "wrong",
    "crashed": "crash",
    "hung": "hangs",
}


def versions():
    """Return the versions that cells run with."""
    # Each cell imports them anyway; reading a table does not need them.
    import keras
    import tensorflow as tf

    return {"keras": keras.__version__, "tensorflow": tf.__version__}


def record(results):
    """Return the record of a run of all cells."""
    places = collections.defaultdict(dict)
    for cell, result in results.items():
        places[cell.place][cell.owner] = result["outcome"]
        if result["outcome"] != "passed":
            places[cell.place][f"{cell.owner} says"] = result["reason"]
    return {"versions": versions(), "cells": dict(places)}


def read():
    return json.loads(RECORD.read_text())


def write(record):
    """Write the record and the page."""
    # A line for each place, so that a change shows what changed.
    lines = [
        f"  {json.dumps(place)}: {json.dumps(outcomes, ensure_ascii=False)}"
        for place, outcomes in record["cells"].items()
    ]
    versions = json.dumps(record["versions"])
    body = ",\n".join(lines)
    RECORD.write_text(f'{{"versions": {versions}, "cells": {{\n{body}\n}}}}\n')
    FULL.write_text(full(record))


def overview(record):
    """Return the summary: how many ways of training pass."""
    titles = [strategy.title for strategy in cells.STRATEGIES.values()]
    rows = [
        [title, *(_share(record, strategy, feature) for strategy in cells.STRATEGIES)]
        for feature, title in cells.FEATURES.items()
    ]
    return markdown(["", *titles], rows, numbers=False)


def summary(record):
    """Return the line that counts all cells."""
    outcomes = record["cells"].values()
    ours, keras = (
        collections.Counter(each[owner] for each in outcomes) for owner in cells.OWNERS
    )
    refused = f" and refuses {ours['refused']}" if ours["refused"] else ""
    absent = keras["no such option"]
    return (
        f"keras_mp passes {_of(ours['passed'], outcomes)}{refused}; Keras "
        f"{record['versions']['keras']}'s own class passes "
        f"{_of(keras['passed'], outcomes)}, and has no option for {absent}."
    )


def _of(passed, outcomes):
    return f"{passed} of {len(outcomes)} cells ({passed / len(outcomes):.0%})"


def _share(record, strategy, feature):
    """Return how many ways of training pass: with ours, and with Keras's own class."""
    found = [
        record["cells"][cell.place]
        for cell in cells.all_cells(["ours"], [strategy])
        if cell.feature == feature
    ]
    return " · ".join(_count(found, owner) for owner in cells.OWNERS)


def _count(found, owner):
    outcomes = collections.Counter(each[owner] for each in found)
    for outcome in ("passed", "refused", "no such option"):
        if outcomes[outcome] == len(found):
            return _SIGNS[outcome]
    refused = f" ({outcomes['refused']} refused)" if outcomes["refused"] else ""
    return f"{outcomes['passed']}/{len(found)}{refused}"


def full(record):
    """Return the page with every cell, and with why those that fail do."""
    versions = record["versions"]
    parts = [
        "# What works under which strategy",
        f"Written by `{COMMAND}` with Keras {versions['keras']} and TensorFlow "
        f"{versions['tensorflow']}; `tests/test_support.py` holds every cell of ours "
        "to it. Do not edit.",
        summary(record),
        "The ways of training are `fit`, also with `steps_per_execution=2` and with "
        "`run_eagerly=True`, `train_on_batch`, and a loop of one's own, in a "
        "`tf.function` and eager. Replicas are logical CPUs, workers are processes. "
        "Where a batch does not divide by the replicas, rows on the one device weigh "
        "as they do in their shares. Each entry of this table says in how many ways "
        "the result is that of one device: with keras_mp · with Keras's own class. "
        "✓ is all of them, – that there is no such option.",
        overview(record),
        "In the tables below each entry has keras_mp first, then Keras's own class: "
        "✓ passes, `wrong` trains to another result than one device, `crash` raises, "
        "`hangs` waits for ever, `–` has no such option, `refused` raises an error "
        "that says what to do instead.",
    ]
    notes = [f"- {cells.FEATURES[name]}: {note}" for name, note in cells.NOTES.items()]
    parts.append("\n".join(notes))
    for name, strategy in cells.STRATEGIES.items():
        parts += [f"## {_heading(strategy)}", _table(record, name)]
    parts += ["## Why", *_reasons(record)]
    return "\n\n".join(parts) + "\n"


def _heading(strategy):
    if strategy.processes > 1:
        return f"{strategy.title}: {strategy.processes} processes with one replica each"
    if strategy.devices > 1:
        return f"{strategy.title}: {strategy.devices} logical CPUs"
    return strategy.title[0].upper() + strategy.title[1:]


def _table(record, strategy):
    rows = [
        [title, *(_entry(record, strategy, way, feature) for way in cells.WAYS)]
        for feature, title in cells.FEATURES.items()
    ]
    return markdown(["", *cells.WAYS.values()], rows, numbers=False)


def _entry(record, strategy, way, feature):
    if cells.not_applicable(way, feature):
        return ""
    place = cells.Cell("ours", strategy, way, feature).place
    signs = [_SIGNS[record["cells"][place][owner]] for owner in cells.OWNERS]
    return " / ".join(signs)


def _reasons(record):
    """Yield why cells do not pass, and why there are none, feature by feature."""
    for owner, heading in (("ours", "keras_mp"), ("keras", "Keras's own class")):
        yield f"### {heading}"
        found = {
            feature: _reasons_of(record, owner, feature) for feature in cells.FEATURES
        }
        if not any(found.values()):
            yield "Every cell passes."
        for feature, lines in found.items():
            if lines:
                yield f"{cells.FEATURES[feature]}:"
                yield "\n".join(lines)
    yield "### No cell"
    yield "\n".join(_missing())


def _reasons_of(record, owner, feature):
    """Return one line for each strategy and way of failing."""
    found = collections.defaultdict(list)
    for cell in cells.all_cells([owner]):
        if cell.feature == feature and record["cells"][cell.place][owner] != "passed":
            outcomes = record["cells"][cell.place]
            strategy = cells.STRATEGIES[cell.strategy].title
            sign = _SIGNS[outcomes[owner]]
            reason = _code(outcomes[f"{owner} says"])
            found[strategy, sign, reason].append(cells.WAYS[cell.way])
    return [
        f"- {strategy}; {'; '.join(ways)}: {sign}, {reason}"
        for (strategy, sign, reason), ways in found.items()
    ]


def _code(reason):
    return "``" + re.sub("`+", "'", reason) + "``"


def _missing():
    reasons = collections.defaultdict(list)
    for feature, title in cells.FEATURES.items():
        for way, way_title in cells.WAYS.items():
            if why := cells.not_applicable(way, feature):
                reasons[title, why].append(way_title)
    for (title, why), ways in reasons.items():
        yield f"- {title}; {'; '.join(ways)}: {why}"
