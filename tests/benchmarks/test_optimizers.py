"""The table of what loss scaling costs, from cells to its last line."""

import dataclasses

import pytest
from support.spawned import forked_instead

from benchmarks import optimizers, timing, workloads
from benchmarks.optimizers import Cell
from keras_mp import processes


def result(cell, **seconds):
    """The result of a cell, made of each candidate's rounds in each instance."""
    instances = [
        dict(zip(seconds, rounds, strict=True))
        for rounds in zip(*seconds.values(), strict=True)
    ]
    timed = timing.summary(instances, optimizers.PAIRS)
    return dataclasses.asdict(cell) | {"instances": len(instances)} | timed


WIDE = Cell("wide", "SGD", False, 1)
RESULTS = [
    result(
        WIDE,
        bare=[[0.2] * 3] * 2,
        keras=[[0.25] * 3] * 2,
        keras_mp=[[0.1, 0.16, 0.2], [0.1, 0.14, 0.2]],
        torch=[[0.3], [0.3]],
    ),
    result(
        Cell("small", "Adam", True, 1),
        bare=[[0.01] * 2] * 2,
        keras=[[0.02] * 2] * 2,
        keras_mp=[[0.011] * 2] * 2,
        jax=[[0.5], [0.5]],
    ),
    result(
        Cell("small", "Adam", False, 2),
        bare=[[0.01]],
        keras=[[0.02]],
        keras_mp=[[0.009]],
    ),
]


def test_cells_are_every_model_optimizer_and_place():
    cells = optimizers.cells(list(workloads.WORKLOADS))
    assert len(cells) == len(set(cells)) == 5 * 2 * 3
    assert {cell.optimizer for cell in cells} == {"SGD", "Adam"}
    # XLA compiles for one device.
    assert {cell.replicas for cell in cells if cell.jit_compile} == {1}
    assert {cell.replicas for cell in cells if not cell.jit_compile} == {1, 2}


def test_table_has_a_line_a_cell_and_a_summary():
    lines = optimizers.table(RESULTS).splitlines()
    assert lines[2] == (
        "| 4 Dense of width 2048, SGD, 1 device | 200.0 | 0.750 ± 0.050 "
        "| 1.250 ± 0.000 | 0.600 ± 0.040 | 300.0 | – |"
    )
    assert lines[3] == (
        "| 150 Dense of width 32, Adam, 1 device, XLA | 10.0 | 1.100 ± 0.000 "
        "| 2.000 ± 0.000 | 0.550 ± 0.000 | – | 500.0 |"
    )
    assert lines[4].startswith(
        "| 150 Dense of width 32, Adam, 2 replicas | 10.0 | 0.900 ± 0.000 |"
    )
    assert lines[-1] == (
        "3 cells. keras_mp over bare: median 0.900, best 0.750, worst 1.100, above 1 "
        "by more than two standard errors in 1. keras_mp over Keras's: median 0.550, "
        "best 0.450, worst 0.600, above 1 by more than two standard errors in 0."
    )


@pytest.fixture
def timed(monkeypatch):
    """Return how many instances are timed if the ratios in them are those given."""

    def timed(ratios, patience=60.0):
        made = []

        def candidates(cell, policy, strategy, number):
            made.append(number)

        def paired_rounds(_, rounds):
            above = [ratios[made[-1] % len(ratios)]] * rounds
            return {"bare": [1.0] * rounds, "keras": [1.0] * rounds, "keras_mp": above}

        monkeypatch.setattr(optimizers, "_candidates", candidates)
        monkeypatch.setattr(optimizers, "_time_peers", lambda *_: {"torch": [1.0] * 2})
        monkeypatch.setattr(optimizers.timing, "paired_rounds", paired_rounds)
        monkeypatch.setattr(optimizers.time, "monotonic", lambda: len(made))
        monkeypatch.setattr(optimizers.gc, "collect", lambda: None)  # takes half of one
        result = optimizers._time(WIDE, "float32", 2, patience)
        assert made == list(range(len(made)))
        assert result["instances"] == len(made)
        assert result["seconds"]["torch"] == 1.0
        return len(made)

    return timed


def test_instances_are_timed_until_the_error_is_small(timed):
    assert timed([1.0]) == 6
    # Of seven, the middle three say how near the median is; six would not do.
    assert timed([1.0, 1.3, 1.05, 1.2, 1.05, 1.05, 0.7]) == 7
    # Each one takes a second here.
    assert timed([1.0, 1.1], patience=10.0) == 11
    assert timed([1.0, 1.1], patience=0.0) == 6


def test_instances_are_timed_until_it_is_clear_who_is_faster(timed):
    # Keras and the bare optimizer take one and the same time here.
    assert timed([0.7, 0.8]) == 6
    assert timed([1.2, 1.3]) == 6
    for unclear in ([0.9, 1.0], [1.0, 1.1], [1.03, 1.07]):
        assert timed(unclear, patience=20.0) == 21


def test_another_candidate_is_made_first_in_each_instance(monkeypatch):
    made = []
    monkeypatch.setattr(
        optimizers.steps, "keras_step", lambda _, name, *rest: made.append(name)
    )
    for number in range(4):
        candidates = optimizers._candidates(WIDE, "float32", None, number)
        assert set(candidates) == {"bare", "keras", "keras_mp"}
    assert made[::3] == ["bare", "keras", "keras_mp", "bare"]
    assert all(len(set(made[i : i + 3])) == 3 for i in range(0, 12, 3))


def test_every_cell_has_a_process_of_its_own_and_a_line(monkeypatch):
    started, shown = [], []

    def alone(function, cell, policy, rounds):
        started.append(cell)
        return RESULTS[0] | dataclasses.asdict(cell)

    monkeypatch.setattr(optimizers, "alone", alone)
    results = optimizers.measure(["small", "wide"], "float32", 2, shown.append)
    assert started == optimizers.cells(["small", "wide"])
    assert [optimizers.title(each) for each in results] == [c.title for c in started]
    assert shown == [optimizers.line(each) for each in results]


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (WIDE, ["torch"]),
        (dataclasses.replace(WIDE, jit_compile=True), ["jax"]),
        (dataclasses.replace(WIDE, replicas=2), []),
    ],
)
def test_other_libraries_have_rounds_of_their_own(cell, names, monkeypatch):
    made = []

    def install(peer):
        def step(*arguments):
            made.append((peer, *arguments))
            return lambda: None

        module = getattr(optimizers, f"{peer}_peer")
        monkeypatch.setattr(module, f"{peer}_step", step)
        monkeypatch.setattr(module, "is_available", lambda: True)

    install("torch")
    install("jax")
    monkeypatch.setattr(optimizers.timing, "LEAST", 0.0)
    seconds = optimizers._time_peers(cell, "mixed_bfloat16", 3)
    assert {key: len(value) for key, value in seconds.items()} == dict.fromkeys(
        names, 3
    )
    assert made == [(name, "wide", "SGD", "mixed_bfloat16") for name in names]


def test_other_libraries_need_not_be_installed(monkeypatch):
    for peer in (optimizers.torch_peer, optimizers.jax_peer):
        monkeypatch.setattr(peer, "is_available", lambda: False)
    for cell in (WIDE, dataclasses.replace(WIDE, jit_compile=True)):
        assert optimizers._time_peers(cell, "float32", 3) == {}


@pytest.mark.long
@pytest.mark.parametrize(("replicas", "instances"), [(1, 1), (2, 2)])
def test_a_cell_is_timed_in_a_process_of_its_own(replicas, instances, monkeypatch):
    monkeypatch.setattr(processes, "DEADLINE", 180)
    cell = Cell("convolutional", "SGD", False, replicas)
    with forked_instead():
        timed = processes.alone(time_instances, cell, instances)
    assert {"bare", "keras", "keras_mp"} <= set(timed["seconds"])
    assert timed["instances"] == instances and min(timed["seconds"].values()) > 0
    assert all(median > 0 for median, _ in timed["ratios"].values())
    assert set(timed["ratios"]) == {f"{a} / {b}" for a, b in optimizers.PAIRS}
    assert optimizers.title(timed) == cell.title


def time_instances(cell, instances):
    optimizers.LEAST = instances
    return optimizers._time(cell, "float32", 1, patience=0.0)
