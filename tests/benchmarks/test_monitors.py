"""Callbacks beside none: each candidate looks as it says, and the table."""

import keras
import pytest
from support.workload import TINY

from benchmarks import monitors, timing


@pytest.mark.parametrize("name", monitors.LOOKING)
def test_a_look_looks_once(name):
    made = []

    def callback(every):
        made.append(monitors.LOOKING[name](every))
        return made[0]

    look = monitors.looking(TINY, "mixed_bfloat16", callback)
    (callback,) = made
    assert len(callback.history) == 1
    look()
    assert len(callback.history) == 2


@pytest.mark.long
@pytest.mark.parametrize("name", monitors.FITTING)
@pytest.mark.filterwarnings("ignore:OverflowMonitor has nothing")
def test_a_fit_makes_steps(name):
    seen = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    monitors.fitting(
        TINY, "mixed_bfloat16", lambda: [*monitors.FITTING[name](), count]
    )()
    assert seen == list(range(monitors.STEPS))


def test_table_counts_a_look_in_steps_and_every_hundredth_in_percent():
    seconds = {
        "without": [0.1, 0.1],
        "batches": [0.1005, 0.1005],  # half a percent
        "OverflowMonitor": [0.1008, 0.1008],
        "NumericsMonitor": [0.2, 0.2],
        "ShadowCheck": [0.4, 0.4],
    }
    timed = timing.summary([seconds], monitors.PAIRS)
    rows = monitors.table([{"model": "transformer"} | timed]).splitlines()
    assert rows[2] == "| transformer | 100.0 | 0.5 | 0.8 | 2.0 | 2.5 | 4.0 | 4.5 |"
