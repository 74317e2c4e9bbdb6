"""The time to a first step: each candidate makes one step, and the table."""

import pytest
from support.workload import TINY

from benchmarks import starts, timing
from benchmarks.steps import COMPILE


@pytest.mark.long
@pytest.mark.every(3)
@pytest.mark.parametrize("candidate", COMPILE)
def test_a_start_is_one_step_of_a_new_model(candidate):
    run = starts.start(TINY, candidate, "mixed_bfloat16")
    first, second = run(), run()
    assert first is not second
    assert first.optimizer.iterations == second.optimizer.iterations == 1
    assert first.layers[0].compute_dtype == "bfloat16"


def test_table_has_seconds_and_ratios():
    seconds = {"bare": [1.0, 1.0], "keras": [2.0, 2.0], "keras_mp": [0.8, 0.8]}
    timed = timing.summary([seconds], starts.PAIRS)
    rows = starts.table([{"model": "transformer"} | timed]).splitlines()
    assert rows[2] == "| transformer | 1.00 | 2.00 | 0.80 | 0.80 | 0.00 | 0.40 | 0.00 |"
