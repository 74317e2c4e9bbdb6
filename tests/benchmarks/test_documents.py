"""The tables in the documents are those that the committed results make."""

import json
import pathlib
import re

import pytest

from benchmarks import suite

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks"
PAGES = {
    "optimizers": ROOT / "docs" / "performance.md",
    "stages": ROOT / "docs" / "performance.md",
    "starts": ROOT / "docs" / "performance.md",
    "casts": ROOT / "docs" / "performance.md",
    "monitors": ROOT / "docs" / "performance.md",
    "islands": ROOT / "docs" / "performance.md",
    "memory": ROOT / "docs" / "performance.md",
    "memory-gpu": ROOT / "docs" / "performance.md",
    "gpu": ROOT / "docs" / "performance.md",
}


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_those_of_the_results(name):
    results = json.loads((RESULTS / f"bench-{name}.json").read_text())
    pattern = rf"<!-- bench {name} -->\n(.*?)\n<!-- end -->"
    (shown,) = re.findall(pattern, PAGES[name].read_text(), re.DOTALL)
    assert shown == suite.document(name.removesuffix("-gpu"), results)


def test_the_table_covers_every_cell():
    results = json.loads((RESULTS / "bench-optimizers.json").read_text())["optimizers"]
    cells = [suite.optimizers.title(result) for result in results]
    wanted = suite.optimizers.cells(list(suite.optimizers.WORKLOADS))
    assert cells == [cell.title for cell in wanted]
