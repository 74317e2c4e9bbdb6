"""Train all clients, or some: ``python -m tests.clients --help``."""

import argparse

from . import client, table, trial


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.clients", description="Train models of other packages."
    )
    parser.add_argument("words", nargs="*", help="of the clients with one of these")
    parser.add_argument("--way", help="only the ways with this in their title")
    parser.add_argument("--write", action="store_true", help="write docs/clients.*")
    arguments = parser.parse_args()
    for each in table.clients(arguments.words):
        for way in [client.FLOAT32, *client.PLAIN, *client.OURS]:
            if arguments.way and arguments.way not in way.title:
                continue
            result = trial.run(each, way)
            bad = {k: v for k, v in result.outcomes.items() if v != "passed"}
            print(
                each.name, "|", way.title, "|", bad or "passed", "|", result.said or "",
                flush=True,
            )


if __name__ == "__main__":
    main()
