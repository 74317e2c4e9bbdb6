"""The table of what loss scaling costs, from cells to its last line."""

import pytest

from keras_mp.bench import optimizers, processes, workloads
from keras_mp.bench.optimizers import Cell


def result(cell, **seconds):
    return optimizers.dataclasses.asdict(cell) | {"seconds": seconds}


WIDE = Cell("wide", "SGD", False, 1)
RESULTS = [
    result(
        WIDE, bare=[0.2] * 3, keras=[0.25] * 3, keras_mp=[0.1, 0.15, 0.2], torch=[0.3]
    ),
    result(
        Cell("small", "Adam", True, 1),
        bare=[0.01] * 2,
        keras=[0.02] * 2,
        keras_mp=[0.011] * 2,
        jax=[0.5],
    ),
    result(
        Cell("small", "Adam", False, 2),
        bare=[0.01],
        keras=[0.02],
        keras_mp=[0.009],
    ),
]


def test_cells_are_every_model_optimizer_and_place():
    cells = optimizers.cells(list(workloads.WORKLOADS))
    assert len(cells) == len(set(cells)) == 5 * 2 * 3
    assert {cell.optimizer for cell in cells} == {"SGD", "Adam"}
    # XLA compiles for one device.
    assert {cell.replicas for cell in cells if cell.jit_compile} == {1}
    assert {cell.replicas for cell in cells if not cell.jit_compile} == {1, 2}


def test_ratio_is_the_median_over_rounds():
    assert optimizers.ratio(RESULTS[0], "keras_mp", "bare") == pytest.approx(0.75)
    assert optimizers.ratio(RESULTS[0], "keras_mp", "jax") is None


def test_table_has_a_line_a_cell_and_a_summary():
    lines = optimizers.table(RESULTS).splitlines()
    assert lines[2] == (
        "| 4 Dense of width 2048, SGD, 1 device | 200.0 | 0.75 ± 0.25 "
        "| 1.25 ± 0.00 | 0.60 ± 0.20 | 300.0 | – |"
    )
    assert lines[3] == (
        "| 150 Dense of width 32, Adam, 1 device, XLA | 10.0 | 1.10 ± 0.00 "
        "| 2.00 ± 0.00 | 0.55 ± 0.00 | – | 500.0 |"
    )
    assert lines[4].startswith(
        "| 150 Dense of width 32, Adam, 2 replicas | 10.0 | 0.90"
    )
    assert lines[-1] == (
        "3 cells. keras_mp over bare: median 0.90, best 0.75, worst 1.10, above 1 by "
        "more than two standard errors in 1. keras_mp over Keras's: median 0.55, best "
        "0.45, worst 0.60, above 1 by more than two standard errors in 0."
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_cell_is_timed_in_a_process_of_its_own(replicas, monkeypatch):
    monkeypatch.setattr(processes, "DEADLINE", 180)
    cell = Cell("convolutional", "SGD", False, replicas)
    (timed,) = processes.alone(optimizers._time_all, [cell], "float32", 1)
    assert {"bare", "keras", "keras_mp"} <= set(timed["seconds"])
    # One round of each instance.
    assert all(len(each) == 3 for each in timed["seconds"].values())
    assert all(min(each) > 0 for each in timed["seconds"].values())
    assert optimizers.title(timed) == cell.title
