"""Collectives as counted in processes of their own, and the document that shows them.

Collective keys leak from one strategy to the next within a process, and a collective
that lacks a replica waits for it for ever.
"""

import itertools
import json
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers
from support.spawned import forked_instead

from benchmarks import devices, traffic
from benchmarks.workloads import WORKLOADS, Workload, sized
from keras_mp import processes

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "distribution.md"
WIDTH, ROWS, PARAMETERS = 8, 16, 2 * (8 * 8 + 8)
SPARSE_SETTINGS = [("keras_mp", 1, d) for d in (None, "float16", "bfloat16")]
SPARSE_SETTINGS.append(("keras_mp", 4, None))


@pytest.fixture(autouse=True, scope="module")
def quick_processes():
    """Start processes without an import of TensorFlow, and end those that hang.

    Half a minute is enough on two busy cores; a deadlock takes for ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "DEADLINE", 180)
        with forked_instead():
            yield


@pytest.fixture(scope="module")
def counted():
    """Return what was counted on two replicas, by model and setting."""
    return processes.alone(counts_on_two_replicas)


# What runs in the processes.


def dense_model():
    return keras.Sequential([keras.Input((WIDTH,)), *map(layers.Dense, [WIDTH] * 2)])


def sparse_model():
    table = layers.Embedding(10, WIDTH)
    return keras.Sequential([keras.Input((1,), dtype="int32"), table, layers.Flatten()])


def floats(rows):
    return np.ones((rows, WIDTH), "float32"), np.zeros((rows, WIDTH), "float32")


def ids(rows):
    return np.ones((rows, 1), "int32"), np.zeros((rows, WIDTH), "float32")


DENSE = Workload("dense", dense_model, floats, ROWS)
SPARSE = Workload("sparse", sparse_model, ids, ROWS)


def counts_on_two_replicas():
    strategy = devices.mirrored(2)

    def count(workload, settings):
        return [traffic.count(strategy, workload, n, d, c) for c, n, d in settings]

    return {
        "dense": count(DENSE, traffic.SETTINGS),
        "sparse": count(SPARSE, SPARSE_SETTINGS),
        "transformer": [
            *count(WORKLOADS["transformer"], [("keras_mp", 1, None)]),
            # What is accumulated is dense, and as large for any number of rows.
            *count(sized("transformer", rows=2), [("keras_mp", 4, "bfloat16")]),
        ],
    }


def count_on_four_replicas():
    return traffic.count(devices.mirrored(4), DENSE, accumulation=4)


# Counts.


def at(counts, *setting):
    """Return the count of candidate, accumulation and ``all_reduce_dtype``."""
    keys = ("candidate", "accumulation", "all_reduce_dtype")
    (found,) = (c for c in counts if tuple(c[key] for key in keys) == setting)
    return found


def reduced(launches, size):
    """Return the tally of a step without sparse gradients."""
    sums = {"all_reduces": launches, "reduced_bytes": size}
    return sums | {"all_gathers": 0, "gathered_bytes": 0}


@pytest.mark.long
@pytest.mark.parametrize("candidate", ["bare", "keras_mp"])
def test_gradients_are_one_all_reduce_that_carries_the_verdict_too(counted, candidate):
    steps = at(counted["dense"], candidate, 1, None)["steps"]
    assert steps == [reduced(1, 4 * PARAMETERS)]


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_halve_the_bytes(counted, dtype):
    steps = at(counted["dense"], "keras_mp", 1, dtype)["steps"]
    assert steps == [reduced(1, 2 * PARAMETERS)]


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "size"), [(None, 4), ("float16", 2)])
def test_a_window_sends_its_gradients_once_and_nothing_before(counted, dtype, size):
    steps = at(counted["dense"], "keras_mp", 4, dtype)["steps"]
    assert steps == [reduced(0, 0)] * 3 + [reduced(1, size * PARAMETERS)]


@pytest.mark.long
def test_an_overflow_sends_nothing_more_on_one_machine(counted):
    update, micro_batch = (
        at(counted["dense"], "keras_mp", n, None)["skipped"] for n in (1, 4)
    )
    assert update == reduced(1, 4 * PARAMETERS)
    assert micro_batch == reduced(0, 0)


@pytest.mark.long
def test_the_law_for_dense_gradients(counted):
    keys = ["candidate", "accumulation", "all_reduce_dtype", "steps", "parameters"]
    law, found = (
        [[count[key] for key in keys] for count in counts]
        for counts in (traffic.dense(PARAMETERS), counted["dense"])
    )
    assert law == found


@pytest.mark.long
def test_what_a_replica_sends_does_not_grow_with_the_replicas():
    steps = processes.alone(count_on_four_replicas)["steps"]
    assert steps == [reduced(0, 0)] * 3 + [reduced(1, 4 * PARAMETERS)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "size"), [(None, 4), ("float16", 2), ("bfloat16", 4)]
)
def test_sparse_gradients_are_gathered(counted, dtype, size):
    (step,) = at(counted["sparse"], "keras_mp", 1, dtype)["steps"]
    rows = ROWS // 2
    # How many rows, the rows, and their indices, of 4 bytes each.
    sent = {"all_gathers": 3, "gathered_bytes": 4 + rows * (size * WIDTH + 4)}
    assert step == {"all_reduces": 0, "reduced_bytes": 0} | sent


@pytest.mark.long
def test_accumulated_sparse_gradients_are_sent_as_the_whole_table(counted):
    *_, update = at(counted["sparse"], "keras_mp", 4, None)["steps"]
    assert update == reduced(1, 4 * 10 * WIDTH)


# Times.


@pytest.mark.long
def test_times_of_both_optimizers_are_taken_in_turns():
    (timed,) = traffic.step_times(["convolutional"], replicas=[2], rounds=2)
    assert timed["workload"] == WORKLOADS["convolutional"].title
    assert timed["replicas"] == 2
    assert set(timed["seconds"]) == {"bare", "keras_mp"}
    assert min(timed["seconds"].values()) > 0
    assert set(timed["ratios"]) == {"keras_mp / bare"}
    assert json.loads(json.dumps(timed)) == timed
    assert traffic.time_table([timed]).count("\n") == 2


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "DEADLINE", 0.1)
    with pytest.raises(TimeoutError, match="step_times"):
        traffic.step_times(["convolutional"], replicas=[2], rounds=1)


# The cost model and the document.


def test_ring():
    # 2 (n - 1) messages of size / n bytes each.
    assert traffic.ring_seconds(800, 4, 100, 0.5) == 6 * (200 / 100 + 0.5)
    assert traffic.ring_seconds(800, 1, 100, 0.5) == 0


def test_gather_and_recursive_doubling():
    assert traffic.gather_seconds(800, 4, 100, 0.5) == 3 * (800 / 100 + 0.5)
    assert traffic.doubling_seconds(800, 8, 100, 0.5) == 3 * (800 / 100 + 0.5)
    assert traffic.doubling_seconds(800, 1, 100, 0.5) == 0


def test_a_window_costs_its_gradients_and_its_flags():
    counted = at(traffic.dense(100_000_000), "keras_mp", 4, None)
    gradients = 14 * (50e6 / 450e9 + 1e-6) + 14 * (50e6 / 8 / 50e9 + 5e-6)
    flags = 3 * 3 * (256 / 450e9 + 1e-6) + 3 * 3 * (256 / 50e9 + 5e-6)
    expected = pytest.approx((gradients + flags) / 4)
    assert traffic.expected_seconds(counted, 64) == expected


def tables():
    """Return the document's tables, as they are written and by their heading."""
    text = DOCUMENT.read_text()
    lines = itertools.groupby(text.splitlines(), lambda line: line.startswith("|"))
    found = ["\n".join(table) for is_table, table in lines if is_table]
    return {table.splitlines()[0]: table for table in found}


def documented_counts():
    """Read the counts back from the document's table of them."""
    (table,) = (table for heading, table in tables().items() if "update:" in heading)
    return [_read(row.strip("| ").split(" | ")) for row in table.splitlines()[2:]]


def _read(row):
    title, candidate, accumulation, dtype, *sent = row
    reduces, gathers, flags = map(_sent, sent)
    update = dict(zip(("all_reduces", "reduced_bytes"), reduces, strict=True))
    update |= dict(zip(("all_gathers", "gathered_bytes"), gathers, strict=True))
    return {
        "workload": title,
        "candidate": candidate,
        "accumulation": int(accumulation),
        "all_reduce_dtype": None if dtype == "None" else dtype,
        "steps": [reduced(*flags)] * (int(accumulation) - 1) + [update],
    }


def _sent(cell):
    if cell == "–":
        return 0, 0
    return [
        int(n.replace(",", "")) for n in re.fullmatch(r"(.*): (.*) B", cell).groups()
    ]


def test_the_document_shows_every_setting():
    documented = documented_counts()
    found = [
        (c["workload"], c["candidate"], c["accumulation"], c["all_reduce_dtype"])
        for c in documented
    ]
    titles = [WORKLOADS[name].title for name in traffic.COUNTED]
    assert found == [(t, *s) for t in titles for s in traffic.SETTINGS]
    assert traffic.count_table(documented) in tables().values()


@pytest.mark.long
def test_the_document_has_what_is_counted(counted):
    documented = documented_counts()
    for fresh in counted["transformer"]:
        keys = ["workload", "candidate", "accumulation", "all_reduce_dtype", "steps"]
        assert {key: fresh[key] for key in keys} in documented


def test_the_document_works_costs_out_from_its_counts():
    costs = traffic.cost_table(traffic.dense(100_000_000) + documented_counts())
    assert costs in tables().values()


def test_the_document_has_the_cost_of_a_flag():
    rows = [
        f"| {n} | {4 * n:,} | {traffic.flag_across(n) * 1000:.3f} "
        f"| {traffic.reduce_across(4 * n, n) * 1000:.3f} |"
        for n in traffic.GPUS
    ]
    assert "\n".join(rows) in DOCUMENT.read_text()
