"""Writes the page and the JSON file of the documents into a folder that it is given."""

import pathlib
import sys

from keras_mp.conformance import table
from keras_mp.conformance.every import all_cases
from keras_mp.conformance.measure import measure_all


def main(folder: str) -> None:
    """Measure everything, and write ``conformance.json`` and ``conformance.md``."""
    record = table.record(measure_all(all_cases(), show=print))
    table.write(pathlib.Path(folder) / "conformance.json", record)
    page = pathlib.Path(folder) / "conformance.md"
    page.write_text(table.with_block(page.read_text(), table.document(record)))


if __name__ == "__main__":
    main(*sys.argv[1:])
