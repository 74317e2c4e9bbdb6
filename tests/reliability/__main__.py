"""Run the tests that inject faults: ``python -m tests.reliability --help``."""

import argparse
import collections
import sys

import pytest

from . import render

#: The tests that inject faults.
FILES = [
    "tests/resuming/test_kills.py",
    "tests/callbacks/test_backup_and_restore.py",
    "tests/resuming/test_files.py",
    "tests/resuming/test_folder.py",
    "tests/optimizer/test_soak.py",
    "tests/test_damaged_files.py",
]


class Counts:
    """A plugin of pytest that adds up what tests note of faults."""

    def __init__(self):
        self.faults = collections.defaultdict(lambda: [0, 0])

    def pytest_runtest_logreport(self, report):
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "faults":
                kind, *numbers = value
                counts = self.faults[kind]
                counts[:] = [sum(pair) for pair in zip(counts, numbers, strict=True)]


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description="Count faults and survivals."
    )
    parser.add_argument("--write", action="store_true", help="write docs/reliability.*")
    parser.add_argument(
        "--short", action="store_true", help="run what CI runs; not to be written"
    )
    arguments = parser.parse_args()
    if arguments.write and arguments.short:
        parser.error("--write needs all tests: leave --short out")
    counts = Counts()
    marks = "not slow" if arguments.short else "slow or not slow"
    status = pytest.main([*FILES, "-q", "-n", "0", "-m", marks], plugins=[counts])
    for kind, (injected, survived) in counts.faults.items():
        print(f"{kind}: {injected} injected, {survived} survived")
    if arguments.write and status == 0:
        render.write(counts.faults)
    sys.exit(status)


if __name__ == "__main__":
    main()
