"""What replicas send each other in a step, what that costs, and how long steps take.

Counted is what is executed, at the lowest place that Python reaches: each launch of
TensorFlow's CollectiveReduceV2 and CollectiveGatherV2 notes the bytes it is handed,
beside it in the graph and so only in the branch that runs. A walk of the graph would
have to guess the branches and could not size sparse gradients; a strategy's
``CrossDeviceOps`` come before gradients are packed; a network device's counter adds
what workers say to each other besides. The strategy is MirroredStrategy on logical
CPUs: it packs and launches through the class that MultiWorkerMirroredStrategy uses, so
gradients count the same in a cluster. There micro-batches between updates send an
all-reduce of flags, which replicas on one machine read from each other; ``fit`` adds
two all-reduces of few bytes, for Keras's mean of each of its logs; and Keras's bare
optimizer cannot ``fit``.

``python -m benchmarks --section distribution`` prints what ``docs/distribution.md``
shows.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

import keras_mp
from benchmarks.devices import mirrored
from benchmarks.steps import fit_step, keras_step
from benchmarks.timing import median_ratio, milliseconds, paired_rounds, summary
from benchmarks.workloads import WORKLOADS, Workload
from keras_mp.processes import alone
from keras_mp.tables import markdown, number

COUNTED = ("wide", "transformer", "embedding")
TIMED = ("small", "transformer")
SETTINGS = [  # candidate, gradient_accumulation_steps, all_reduce_dtype
    ("bare", 1, None),
    *(("keras_mp", n, d) for n in (1, 4) for d in (None, "float16", "bfloat16")),
]

# The cluster of the expected costs: bytes/s per GPU and direction, seconds per hop.
GPUS = (8, 64, 512)
NODE = 8  # GPUs in a node
NVLINK = (450e9, 1e-6)
NETWORK = (50e9, 5e-6)  # InfiniBand NDR, 400 Gb/s for each GPU


# Counting.


def count(
    strategy: tf.distribute.Strategy,
    workload: Workload,
    accumulation: int = 1,
    all_reduce_dtype: str | None = None,
    candidate: str = "keras_mp",
) -> dict:
    """Count what one replica hands to collectives in the steps of one window.

    Args:
        strategy: A MirroredStrategy, the only strategy of this process.
        workload: Its global batch is split over the replicas.
        accumulation: Micro-batches in an update, and so steps in a window.
        all_reduce_dtype: As of `keras_mp.LossScaleOptimizer`.
        candidate: ``"keras_mp"`` or ``"bare"``, which has neither of both options:
            Keras's accumulation fails under a strategy.

    Returns:
        The arguments, ``parameters``, ``replicas``, ``steps``: a tally of each step of
        a window, of which the last updates; and ``skipped``: that of a step, at a
        window's start, that overflows (None for the bare optimizer). A tally has the
        launches, ``all_reduces`` and ``all_gathers``, and the bytes of the replica's
        own part, ``reduced_bytes`` and ``gathered_bytes``.
    """
    with _recorded_collectives() as calls:
        model = _compiled(strategy, workload, accumulation, all_reduce_dtype, candidate)
        step = fit_step(model, workload.batch(workload.rows), strategy)

        def tally_of_step():
            calls.clear()
            step()
            return _tally(calls)

        for _ in range(accumulation):  # the first one traces
            step()
        steps = [tally_of_step() for _ in range(accumulation)]
        skipped = None
        if candidate == "keras_mp":
            model.optimizer.dynamic_scale.assign(math.inf)
            skipped = tally_of_step()
    return {
        "workload": workload.title,
        "candidate": candidate,
        "accumulation": accumulation,
        "all_reduce_dtype": all_reduce_dtype,
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
        "replicas": strategy.num_replicas_in_sync,
        "steps": steps,
        "skipped": skipped,
    }


def _compiled(strategy, workload, accumulation, all_reduce_dtype, candidate):
    with strategy.scope():
        model = workload.build()
        optimizer = keras.optimizers.SGD(
            1e-3, gradient_accumulation_steps=accumulation if accumulation > 1 else None
        )
        if candidate == "bare":
            model.compile(optimizer, loss=workload.loss, auto_scale_loss=False)
        else:
            optimizer = keras_mp.LossScaleOptimizer(
                optimizer, all_reduce_dtype=all_reduce_dtype
            )
            keras_mp.compile(model, optimizer, loss=workload.loss)
        model.optimizer.build(model.trainable_variables)
    return model


@contextlib.contextmanager
def _recorded_collectives() -> Iterator[list[tuple[str, int]]]:
    """Collect the kind and bytes of each collective that replica 0 launches.

    Of steps that are traced and run inside. Nothing public is below the packing.
    """
    from tensorflow.python.ops import collective_ops

    kinds = {"all_reduce_v2": "reduce", "all_gather_v2": "gather"}
    launches = {name: getattr(collective_ops, name) for name in kinds}
    calls = []
    for name, kind in kinds.items():
        setattr(collective_ops, name, _recording(launches[name], kind, calls))
    try:
        yield calls
    finally:
        for name, launch in launches.items():
            setattr(collective_ops, name, launch)


def _recording(launch, kind, calls):
    @functools.wraps(launch)
    def recording(tensor, *arguments, **options):
        def note(elements):
            calls.append((kind, int(elements) * tensor.dtype.size))

        result = launch(tensor, *arguments, **options)
        if result.device.endswith(":0"):
            tf.numpy_function(note, [tf.size(tensor)], [])
        return result

    return recording


def _tally(calls):
    sizes = {k: [n for kind, n in calls if kind == k] for k in ("reduce", "gather")}
    return {
        "all_reduces": len(sizes["reduce"]),
        "reduced_bytes": sum(sizes["reduce"]),
        "all_gathers": len(sizes["gather"]),
        "gathered_bytes": sum(sizes["gather"]),
    }


# Expected costs.


def dense(parameters: int, replicas: int = 2) -> list[dict]:
    """What `count` says of a model of float32 weights without sparse gradients."""

    def reduced(launches, size):
        sums = {"all_reduces": launches, "reduced_bytes": size}
        return sums | {"all_gathers": 0, "gathered_bytes": 0}

    return [
        {
            "workload": f"{parameters / 1e6:g} M parameters, dense",
            "candidate": candidate,
            "accumulation": steps,
            "all_reduce_dtype": dtype,
            "parameters": parameters,
            "replicas": replicas,
            "steps": [reduced(0, 0)] * (steps - 1)
            + [reduced(1, (2 if dtype else 4) * parameters)],
        }
        for candidate, steps, dtype in SETTINGS
    ]


def ring_seconds(size: float, replicas: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes: 2 (n-1) messages of size / n."""
    return 2 * (replicas - 1) * (size / replicas / bandwidth + latency)


def gather_seconds(
    size: float, replicas: int, bandwidth: float, latency: float
) -> float:
    """Seconds of a ring all-gather of ``size`` bytes of each replica."""
    return (replicas - 1) * (size / bandwidth + latency)


def doubling_seconds(
    size: float, replicas: int, bandwidth: float, latency: float
) -> float:
    """Seconds of an all-reduce of few bytes by recursive doubling: log2 n messages."""
    return math.ceil(math.log2(replicas)) * (size / bandwidth + latency)


def reduce_across(size: float, gpus: int) -> float:
    """Seconds of an all-reduce: a ring in each node, then rings across the nodes.

    The ring in a node leaves each GPU an eighth to sum with its peers in other nodes.
    """
    across = ring_seconds(size / NODE, gpus // NODE, *NETWORK)
    return ring_seconds(size, NODE, *NVLINK) + across


def gather_across(size: float, gpus: int) -> float:
    """Seconds of an all-gather: rings across the nodes, then a ring in each node."""
    nodes = gpus // NODE
    across = gather_seconds(size, nodes, *NETWORK)
    return across + gather_seconds(nodes * size, NODE, *NVLINK)


def flag_across(gpus: int) -> float:
    """Seconds in which the replicas exchange a flag of 4 bytes for each."""
    inside = doubling_seconds(4 * gpus, NODE, *NVLINK)
    return inside + doubling_seconds(4 * gpus, gpus // NODE, *NETWORK)


def expected_seconds(counted: dict, gpus: int) -> float:
    """Seconds of communication per micro-batch in a cluster, by the counts of `count`.

    There each micro-batch between updates sends flags too, and on one machine none.
    """
    *between, update = counted["steps"]
    seconds = reduce_across(update["reduced_bytes"], gpus)
    if gathers := update["all_gathers"]:
        seconds += gathers * gather_across(update["gathered_bytes"] / gathers, gpus)
    return (seconds + len(between) * flag_across(gpus)) / len(counted["steps"])


# Timing.


def step_times(
    names: Sequence[str] = TIMED, replicas: Sequence[int] = (1, 2, 4), rounds: int = 5
) -> list[dict]:
    """Time steps of ``fit`` on logical CPUs: Keras's bare Adam and ours, in turns.

    The global batch stays the same (strong scaling). More replicas than cores are not
    faster: what grows is the overhead of having them.

    Returns:
        Dicts with ``workload``, ``replicas`` and a `timing.summary` of the candidates.
    """
    return [row for n in replicas for row in alone(_step_times, n, names, rounds)]


def _step_times(replicas, names, rounds):
    strategy = mirrored(replicas)

    def timed(workload):
        steps = {
            name: keras_step(workload, name, "Adam", "float32", strategy=strategy)
            for name in ("bare", "keras_mp")
        }
        return summary([paired_rounds(steps, rounds)], [("keras_mp", "bare")])

    return [
        {"workload": w.title, "replicas": replicas} | timed(w)
        for w in map(WORKLOADS.get, names)
    ]


def _counts(replicas, names):
    strategy = mirrored(replicas)
    return [
        count(strategy, WORKLOADS[name], accumulation, dtype, candidate)
        for name in names
        for candidate, accumulation, dtype in SETTINGS
    ]


# For `python -m benchmarks`.


def measure(rounds: int, show: Callable[[str], None]) -> dict:
    """Count, then time ``rounds`` rounds; returns what `table` takes, JSON's types."""
    show("distribution: counting collectives on 2 replicas")
    counts = alone(_counts, 2, COUNTED)
    show("distribution: timing steps on 1, 2 and 4 replicas")
    return {"counts": counts, "step_times": step_times(rounds=rounds)}


def table(results: dict) -> str:
    """The counts, the times, and the cost that is expected of them, in Markdown."""
    counts = results["counts"]
    return "\n\n".join(
        [
            count_table(counts),
            time_table(results["step_times"]),
            cost_table(dense(100_000_000) + counts),
        ]
    )


def count_table(counts: list[dict]) -> str:
    """Launches and bytes of one replica in a step, by kind of step."""
    rows = []
    for counted in counts:
        *between, update = counted["steps"]
        rows.append(
            [
                counted["workload"],
                counted["candidate"],
                *_setting(counted),
                _sent(update, "all_reduces", "reduced_bytes"),
                _sent(update, "all_gathers", "gathered_bytes"),
                _sent(between[0], "all_reduces", "reduced_bytes") if between else None,
            ]
        )
    sent = ["update: all-reduces", "update: all-gathers", "between: all-reduces"]
    return markdown(["model", "optimizer", *_SETTING, *sent], rows)


def time_table(times: list[dict]) -> str:
    """Milliseconds per step, and keras_mp's time over the bare optimizer's."""
    rows = []
    for timed in times:
        medians = (milliseconds(timed, name) for name in ("bare", "keras_mp"))
        ratio = number(median_ratio(timed, "keras_mp", "bare"))
        shown = [number(each, ".1f") for each in medians]
        rows.append([timed["workload"], str(timed["replicas"]), *shown, ratio])
    return markdown(["model", "replicas", "bare, ms", "keras_mp, ms", "ratio"], rows)


def cost_table(counts: list[dict]) -> str:
    """Milliseconds of communication per micro-batch that keras_mp's counts predict."""
    rows = [
        [
            counted["workload"],
            *_setting(counted),
            *(f"{expected_seconds(counted, n) * 1000:.3f}" for n in GPUS),
        ]
        for counted in counts
        if counted["candidate"] == "keras_mp"
    ]
    return markdown(["model", *_SETTING, *(f"{n} GPUs" for n in GPUS)], rows)


_SETTING = ["accumulation", "`all_reduce_dtype`"]


def _setting(counted):
    return f"{counted['accumulation']}", counted["all_reduce_dtype"] or "None"


def _sent(tally, launches, size):
    return f"{tally[launches]}: {tally[size]:,} B" if tally[launches] else None
