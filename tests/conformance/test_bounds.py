"""Bounds have reasons, keras_mp is within them, and Keras alone is where the page says.

All cases with keras_mp take about two minutes on two cores. With Keras alone, a sample
is measured again, and the others are marked slow.
"""

import json
import pathlib

import keras
import pytest
import tensorflow as tf

from conformance import bounds, measure, table
from conformance.every import all_cases

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "conformance.json"

CASES = all_cases()
IDS = [f"{case.kind}-{case.title}" for case in CASES]

# Einsums of TensorFlow 2.18 add up float16 in float16 on a CPU, those of 2.21 do not.
TOO_LONG = () if tf.__version__ >= "2.21" else ("8,192 keys",)


# Of the cases, every so many are measured again with Keras alone.
SAMPLE = 12


def failures(case, mode):
    """Return the failures of a case by scenario and policy."""
    return {
        (scenario, policy): bounds.failure(result)
        for scenario in case.scenarios
        if scenario not in TOO_LONG
        for policy in measure.POLICIES
        for result in measure.measure(case, scenario, policy, [mode])
        if bounds.failure(result) is not None
    }


@pytest.mark.every(8)
@pytest.mark.parametrize("case", CASES, ids=IDS)
# TensorFlow's own loops over a batch, traced anew for each shape.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keras_mp_is_within_its_bounds(case):
    assert failures(case, "keras_mp") == {}


@pytest.fixture(scope="module")
def committed():
    """Return the failures of Keras alone on the page, by kind and title of the case."""
    record = json.loads(DOCUMENT.read_text())
    versions = record["environment"]["versions"]
    if versions["keras"] != keras.__version__ or tf.__version__ not in (
        versions.get("tensorflow"),
        versions.get("tensorflow-cpu"),
    ):
        pytest.skip("measured with other releases of Keras or TensorFlow")
    found = {}
    for result in table.results_of(record):
        if result.mode == "keras" and bounds.failure(result) is not None:
            place = found.setdefault((result.kind, result.title), {})
            place[result.scenario, result.policy] = bounds.failure(result)
    return found


@pytest.mark.every(6)
@pytest.mark.cpu
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if place % SAMPLE else [])
        for place, (case, name) in enumerate(zip(CASES, IDS, strict=True))
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keras_alone_fails_where_the_page_says(case, committed):
    # How many values are not finite, and by how much others are off, differs a little
    # between processors.
    documented = committed.get((case.kind, case.title), {})
    assert _manner(failures(case, "keras")) == _manner(documented)


def _manner(failures):
    """Return how each fails: ``not finite``, ``ulps``, or by which exception."""
    manners = "not finite", "ulps"
    return {
        place: next((manner for manner in manners if how.endswith(manner)), how)
        for place, how in failures.items()
    }


def test_every_wider_bound_has_a_reason_and_a_case():
    for _, ulps, reason in bounds.WIDER:
        assert reason and ulps > bounds.BOUNDS["layers"]
    titles = [case.title for case in CASES if case.kind == "layers"]
    found = {bounds.bound("layers", title) for title in titles}
    assert {ulps for _, ulps, _ in bounds.WIDER} <= found
