"""Run the whole matrix, or part of it: ``python -m tests.support --help``."""

import argparse

from . import cells, render, runner


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.support", description="Run the support matrix."
    )
    parser.add_argument(
        "words", nargs="*", help="run the cells that have all of these in their name"
    )
    parser.add_argument("--write", action="store_true", help="write docs/support.*")
    arguments = parser.parse_args()
    if arguments.write and arguments.words:
        parser.error("--write needs all cells: leave the words out")
    wanted = [
        cell
        for cell in cells.all_cells()
        if set(arguments.words) <= {cell.owner, *cell.place.split()}
    ]
    results = runner.run(wanted, report=_print)
    if arguments.write:
        render.write(render.record(results))


def _print(cell, result):
    seconds = result.get("seconds", "")
    line = (
        cell.owner,
        cell.place,
        result["outcome"],
        seconds,
        result.get("reason", ""),
    )
    print(*line, flush=True)


if __name__ == "__main__":
    main()
