"""What islands cost: the table, and that both sides are what they are called."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp.bench import islands


def test_table_shows_the_ratio():
    seconds = {"with": [0.003, 0.0032, 0.003], "without": [0.002, 0.002, 0.002]}
    results = [{"subject": "Softmax", "seconds": seconds}]
    assert islands.table(results).splitlines()[2] == (
        "| Softmax | 2.00 | 3.00 | 1.50 | 0.05 |"
    )


@pytest.mark.parametrize("title", islands.SUBJECTS)
def test_each_subject_has_an_island_that_it_is_measured_without(title):
    subject = islands.SUBJECTS[title]
    report = {}
    for name, allow in (("with", ()), ("without", [".*"])):
        with keras_mp.policy_scope(keras_mp.Policy("mixed_bfloat16", allow=allow)):
            inputs = [
                keras.Input(s[1:], s[0], dtype="bfloat16") for s in subject.shapes
            ]
            model = keras.Model(inputs, subject.build(*inputs))
        places = keras_mp.placement.placement_report(model)
        report[name] = [
            place
            for place in places
            if place.guards or place.compute_dtype == "float32"
        ]
    assert report["with"] and not report["without"]


def test_a_step_runs():
    islands.step(islands.SUBJECTS["Softmax"], keras_mp.Policy("mixed_bfloat16"))()
    seconds = islands._time("Softmax", "mixed_bfloat16", 1)
    assert all(np.isfinite(each).all() for each in seconds.values())
