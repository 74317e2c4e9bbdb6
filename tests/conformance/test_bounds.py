"""Bounds have reasons, and keras_mp is within them.

The whole harness with keras_mp takes about two minutes on two cores; with Keras alone
too, which measures what is repaired, it is marked slow.
"""

import pytest
import tensorflow as tf

from conformance import bounds, measure
from conformance.every import all_cases

CASES = all_cases()
IDS = [f"{case.kind}-{case.title}" for case in CASES]

# Einsums of TensorFlow 2.18 add up float16 in float16 on a CPU, those of 2.21 do not.
TOO_LONG = () if tf.__version__ >= "2.21" else ("8,192 keys",)


def failures(case, modes):
    return [
        (result.scenario, result.policy, bounds.failure(result))
        for scenario in case.scenarios
        if scenario not in TOO_LONG
        for policy in measure.POLICIES
        for result in measure.measure(case, scenario, policy, modes)
        if bounds.failure(result) is not None
    ]


@pytest.mark.parametrize("case", CASES, ids=IDS)
# TensorFlow's own loops over a batch, traced anew for each shape.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keras_mp_is_within_its_bounds(case):
    assert failures(case, ["keras_mp"]) == []


def test_every_wider_bound_has_a_reason_and_a_case():
    for _, ulps, reason in bounds.WIDER:
        assert reason and ulps > bounds.BOUNDS["layers"]
    titles = [case.title for case in CASES if case.kind == "layers"]
    found = {bounds.bound("layers", title) for title in titles}
    assert {ulps for _, ulps, _ in bounds.WIDER} <= found
