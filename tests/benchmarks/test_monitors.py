"""Callbacks beside none: each candidate looks as it says, and the table."""

import keras
import numpy as np

from benchmarks import monitors, timing
from benchmarks.workloads import Workload

TINY = Workload(
    "tiny",
    lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]),
    lambda rows: (np.ones((rows, 4), "float32"), np.ones((rows, 1), "float32")),
    8,
)


def test_each_callback_looks_once_a_fit_and_is_traced_once():
    for name in monitors.LOOKING:
        used = monitors.CANDIDATES[name]()
        fit = monitors.fitting(TINY, "mixed_bfloat16", lambda used=used: used)
        fit()
        fit()
        steps = [each.step for each in used[0].history]
        assert steps == [monitors.STEPS, 2 * monitors.STEPS]


def test_table_counts_a_look_in_steps_and_every_hundredth_in_percent():
    seconds = {
        "without": [0.1, 0.1],
        "batches": [0.1005, 0.1005],  # half a percent
        "OverflowMonitor": [0.1008, 0.1008],
        "NumericsMonitor": [0.1206, 0.1206],  # in 10 steps, two more
        "ShadowCheck": [0.1407, 0.1407],
    }
    timed = timing.summary([seconds], monitors.PAIRS)
    rows = monitors.table([{"model": "transformer"} | timed]).splitlines()
    assert rows[2] == "| transformer | 100.0 | 0.5 | 0.8 | 2.0 | 2.5 | 4.0 | 4.5 |"
