"""Train all clients, or some: ``python -m tests.clients --help``."""

import argparse

from . import client, render, table, trial


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.clients", description="Train models of other packages."
    )
    parser.add_argument(
        "words", nargs="*", help="train only clients or modules with these names"
    )
    parser.add_argument(
        "--ours", action="store_true", help="leave out float32 and Keras alone"
    )
    parser.add_argument("--write", action="store_true", help="write docs/clients.*")
    arguments = parser.parse_args()
    ways = client.OURS if arguments.ours else client.WAYS
    record = {}
    for module in table.PACKAGES:
        for each in table.clients(module):
            if not arguments.words or {module, each.name} & set(arguments.words):
                record[each.name] = _of(module, each, ways)
                if arguments.write:
                    render.write(record)


def _of(module, found, ways):
    """Return the record of one client; show what did not pass."""
    results = {}
    for way in ways:
        result = trial.run(found, way)
        results[way.title] = {"outcomes": result.outcomes, "says": result.said}
        _print(found, way, result)
    return {
        "module": module,
        "kind": found.kind,
        "faults": found.faults,
        "ways": results,
    }


def _print(found, way, result):
    bad = {
        check: outcome
        for check, outcome in result.outcomes.items()
        if outcome != "passed"
    }
    print(found.name, way.title, bad or "passed", *result.said, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
