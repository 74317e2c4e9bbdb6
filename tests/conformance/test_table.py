"""The page is what the committed results make, and both cover every case."""

import json
import pathlib

import keras
import pytest

from conformance import table
from conformance.every import all_cases
from conformance.measure import POLICIES, Error, Result
from conformance.modes import MODES

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def committed():
    return json.loads((DOCS / "conformance.json").read_text())


def test_the_page_is_that_of_the_results(committed):
    page = (DOCS / "conformance.md").read_text()
    assert page == table.with_block(page, table.document(committed))


def test_the_results_cover_every_case(committed):
    if committed["environment"]["versions"]["keras"] != keras.__version__:
        pytest.skip("measured with another release of Keras")
    measured = {
        (kind, title, scenario)
        for kind, cases in committed["results"].items()
        for title, scenarios in cases.items()
        for scenario in scenarios
    }
    assert measured == {
        (case.kind, case.title, name) for case in all_cases() for name in case.scenarios
    }
    for result in table.results_of(committed):
        assert result.policy in POLICIES and result.mode in MODES


def result(scenario="ordinary", mode="keras", error=None, **forward):
    place = "layers", "Dense", scenario, "mixed_float16", mode
    backward = Error() if error else Error(ulps=1.0)
    return Result(*place, Error(**forward), backward, error)


def test_an_entry_says_what_is_worst():
    results = [
        result(ulps=0.5),
        result("large", nonfinite=3, beyond=2),
        result("long", error="TypeError: no kernel"),
        result(mode="keras_mp", ulps=2.0),
    ]
    row = table.table(results).splitlines()[-1]
    assert row == "| Dense | ✗ large: 3 not finite and 1 more +2 | 2.0 / 1.0 |"
    counts = table.summary(results).splitlines()[-1]
    assert counts == "| layers | 1 | 1 | 0 |"


def test_a_record_keeps_results(tmp_path):
    results = [result(ulps=0.5), result(mode="keras_mp", error="TypeError: no")]
    table.write(tmp_path / "a.json", table.record(results))
    read = json.loads((tmp_path / "a.json").read_text())
    assert table.results_of(read) == results


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="conformance --> ... <!-- end"):
        table.with_block("# Page", "block")
