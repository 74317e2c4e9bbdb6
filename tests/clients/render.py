"""The table: ``docs/clients.json``, and what is made of it for people.

The record has, for each client, its module, kind and faults, and for each way the
outcome of each check and the warnings that float32 does not give.
"""

import collections
import json
import pathlib
import re

from keras_mp.tables import markdown

from . import client, table

ROOT = pathlib.Path(__file__).parents[2]
RECORD = ROOT / "docs" / "clients.json"
PAGE = ROOT / "docs" / "clients.md"

COMMAND = "python -m tests.clients --write"


def read():
    return json.loads(RECORD.read_text())


def write(found):
    """Write the records of the clients ``found``; keep what they do not have."""
    clients = read()["clients"] if RECORD.exists() else {}
    for name, entry in found.items():
        ways = clients.get(name, entry)["ways"] | entry["ways"]
        clients[name] = {**entry, "ways": ways}
    order = list(table.PACKAGES)
    # A line for each way of a client, so that a change shows what changed.
    lines = [
        f"{json.dumps(name)}: {_lines(each)}"
        for name, each in sorted(
            clients.items(), key=lambda item: order.index(item[1]["module"])
        )
    ]
    versions = json.dumps(table.versions())
    body = ",\n".join(lines)
    RECORD.write_text(f'{{"versions": {versions}, "clients": {{\n{body}\n}}}}\n')
    PAGE.write_text(page(read()))


def _lines(entry):
    ways = ",\n".join(
        f"    {json.dumps(title)}: {json.dumps(result, ensure_ascii=False)}"
        for title, result in entry["ways"].items()
    )
    about = {name: each for name, each in entry.items() if name != "ways"}
    return f'{json.dumps(about)[:-1]}, "ways": {{\n{ways}}}}}'


def failed(entry, title):
    """Return the checks that fail in this way and pass in float32, with the reasons."""
    right = entry["ways"][client.FLOAT32.title]["outcomes"]
    return {
        check: outcome
        for check, outcome in entry["ways"][title]["outcomes"].items()
        if outcome != "passed" and right.get(check, "passed") == "passed"
    }


def page(record):
    """Return the page with every client, and with why those that fail do."""
    versions = ", ".join(f"{name} {each}" for name, each in record["versions"].items())
    parts = [
        "# Packages written for Keras 3, under keras_mp",
        f"Written by `{COMMAND}` on a CPU with {versions}; `pytest -m clients` holds "
        "keras_mp to it. Do not edit.",
        "Each client is a small model of the package with random weights. It takes "
        "three steps of SGD that are not skipped, which must be as in float32 but for "
        "16-bit rounding; it is saved, and loaded where no policy is set, to the same "
        "predictions; `keras_mp.lint` has nothing but notes; and what it generates is "
        "what it predicts. ✓ passes all that float32 passes; other entries name what "
        "does not. `set_policy`: the model is built under "
        "`keras_mp.set_policy`; `convert`: it is built in float32 and put under the "
        "policy by `keras_mp.compile(..., policy=...)`. Dropout is off, since dtypes "
        "draw other numbers.",
        summary(record),
        _table(record),
        "## What keras_mp does not mend",
        _faults(record),
        "## Why",
        *_section("keras_mp", client.OURS, record),
        *_section("Keras", client.PLAIN, record),
        *_section("float32", [], record),
        "## What keras_mp warns of",
        _warnings(record),
    ]
    return "\n\n".join(parts) + "\n"


def summary(record):
    """Return the line that counts the entries."""
    counts = [
        f"{name} passes {_passed(ways, record)}"
        for name, ways in (("keras_mp", client.OURS), ("Keras alone", client.PLAIN))
    ]
    return "; ".join(counts) + "."


def _passed(ways, record):
    entries = record["clients"].values()
    passed = sum(not failed(each, way.title) for each in entries for way in ways)
    return f"{passed} of {len(entries) * len(ways)}"


def _table(record):
    ways = [*client.PLAIN, *client.OURS]
    head = ["package", "client", "kind", *(way.title for way in ways)]
    rows = []
    for name, entry in record["clients"].items():
        signs = [", ".join(failed(entry, way.title)) or "✓" for way in ways]
        package = table.PACKAGES[entry["module"]]
        rows.append([package, name, entry["kind"], *signs])
    return markdown(head, rows, numbers=False)


def _faults(record):
    """Return why clients are allowed to fail a check."""
    return "\n".join(
        f"- {name}, {check}: {reason}"
        for name, entry in record["clients"].items()
        for check, reason in entry["faults"].items()
    )


def _section(title, ways, record):
    """Yield why checks fail: in ``ways``, or in float32 where there are none."""
    reasons = collections.defaultdict(list)
    for name, entry in record["clients"].items():
        for way in ways or [client.FLOAT32]:
            outcomes = entry["ways"][way.title]["outcomes"]
            for check in failed(entry, way.title) if ways else outcomes:
                if outcomes[check] != "passed":
                    reasons[name, check, outcomes[check]].append(way.title)
    yield f"### {title}"
    if not reasons:
        yield "Nothing fails."
    yield "\n".join(
        f"- {name}, {check} ({'; '.join(titles)}): {_code(reason)}"
        for (name, check, reason), titles in reasons.items()
    )


def _warnings(record):
    """Return the warnings under keras_mp, each with the clients it came from."""
    found = collections.defaultdict(dict)
    for name, entry in record["clients"].items():
        for way in client.OURS:
            for text in entry["ways"][way.title]["says"]:
                found[text][name] = True
    if not found:
        return "Nothing."
    return "\n".join(
        f"- {', '.join(names)}: {_code(each)}" for each, names in found.items()
    )


def _code(reason):
    return "``" + re.sub("`+", "'", reason.replace("\n", " ")) + "``"
