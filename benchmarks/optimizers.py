"""What loss scaling costs: steps with it over steps without it, model by model.

One process for each cell, in which the candidates take turns. XLA gives no memory back:
in one process the cells of 150 small layers came to 21 GB.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable

import keras

from benchmarks import jax_peer, steps, timing, torch_peer
from benchmarks.devices import mirrored
from benchmarks.workloads import WORKLOADS
from keras_mp.processes import alone
from keras_mp.tables import markdown, number

#: Whose times are divided by whose.
PAIRS = [("keras_mp", "bare"), ("keras", "bare"), ("keras_mp", "keras")]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of the table."""

    model: str
    optimizer: str
    jit_compile: bool
    replicas: int

    @property
    def title(self) -> str:
        place = "1 device" if self.replicas == 1 else f"{self.replicas} replicas"
        xla = ", XLA" if self.jit_compile else ""
        return f"{WORKLOADS[self.model].title}, {self.optimizer}, {place}{xla}"


def cells(models: list[str], replicas: tuple[int, ...] = (1, 2)) -> list[Cell]:
    """Every cell of the table; XLA compiles for one device only."""
    return [
        Cell(model, optimizer, jit_compile, count)
        for model in models
        for count in replicas
        for jit_compile in (False, True)[: 2 if count == 1 else 1]
        for optimizer in steps.OPTIMIZERS
    ]


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time every cell of the models; show a line for each.

    Returns:
        For each cell a dict of its fields, the number of ``instances``, and a
        `timing.summary` of these.
    """
    results = []
    for cell in cells(models):
        results.append(alone(_time, cell, policy, rounds))
        show(line(results[-1]))
    return results


def line(result: dict) -> str:
    """One result as text."""
    return (
        f"  {title(result):60} {timing.milliseconds(result, 'bare'):8.2f} ms bare; "
        f"keras_mp {_with_error(result, 'keras_mp', 'bare')}, "
        f"Keras {_with_error(result, 'keras', 'bare')}, "
        f"keras_mp / Keras {_with_error(result, 'keras_mp', 'keras')}; "
        f"{result['instances']} instances"
    )


def title(result: dict) -> str:
    """The cell's title."""
    fields = (field.name for field in dataclasses.fields(Cell))
    return Cell(**{name: result[name] for name in fields}).title


def table(results: list[dict]) -> str:
    """What loss scaling costs, ± a standard error; the last line sums it all up."""
    head = [
        "model, optimizer, where",
        "bare, ms",
        "keras_mp / bare",
        "Keras's / bare",
        "keras_mp / Keras's",
        "torch.amp, ms",
        "JAX, ms",
    ]
    rows = [
        [
            title(result),
            number(timing.milliseconds(result, "bare"), ".1f"),
            _with_error(result, "keras_mp", "bare"),
            _with_error(result, "keras", "bare"),
            _with_error(result, "keras_mp", "keras"),
            number(timing.milliseconds(result, "torch"), ".1f"),
            number(timing.milliseconds(result, "jax"), ".1f"),
        ]
        for result in results
    ]
    return f"{markdown(head, rows)}\n\n{summary(results)}"


def summary(results: list[dict]) -> str:
    """Median and worst cell, of ours over bare and of ours over Keras's."""
    return (
        f"{len(results)} cells. keras_mp over bare: {_spread(results, 'bare')}. "
        f"keras_mp over Keras's: {_spread(results, 'keras')}."
    )


def _with_error(result, above, below):
    median, error = _ratio(result, above, below)
    return f"{median:.3f} ± {error:.3f}"


def _ratio(result, above, below):
    return result["ratios"][f"{above} / {below}"]


def _spread(results, below):
    ratios = [_ratio(result, "keras_mp", below) for result in results]
    medians = [median for median, _ in ratios]
    above = sum(median - 2 * error > 1 for median, error in ratios)
    return (
        f"median {statistics.median(medians):.3f}, best {min(medians):.3f}, worst "
        f"{max(medians):.3f}, above 1 by more than two standard errors in {above}"
    )


#: What a step may cost at the most, over the bare optimizer's and over Keras's.
LIMITS = {"bare": 1.05, "keras": 1.0}

#: One and the same program differs by 1 % or 2 % from instance to instance, by where in
#: memory things happen to lie; short steps under XLA by up to a half, from one
#: compilation to the next. So ever more instances of a model are timed until both
#: ratios are on one side of their limit by three standard errors, or their standard
#: error is this small, or for so many seconds. An error of 0.4 % is too large: with it
#: a ratio of 0.998 comes out above 1 in three tables of ten.
PRECISE, PATIENCE = 0.001, 600.0

#: However long they take: of fewer instances the error itself is known badly. Three
#: have agreed on 1.25 ± 0.03 where 25 others, in four runs, gave 1.04.
LEAST = 6


def _time(
    cell: Cell, policy: str, rounds: int, patience: float = PATIENCE
) -> dict[str, object]:
    strategy = mirrored(cell.replicas)
    instances = []
    until = time.monotonic() + patience
    for place in itertools.count():
        candidates = _candidates(cell, policy, strategy, place)
        seconds = timing.paired_rounds(candidates, rounds)
        del candidates
        keras.backend.clear_session()
        gc.collect()
        instances.append(seconds | _time_peers(cell, policy, rounds))
        if len(instances) < LEAST:
            continue
        if time.monotonic() > until or _is_settled(instances):
            count = {"instances": len(instances)}
            return dataclasses.asdict(cell) | count | timing.summary(instances, PAIRS)


def _is_settled(instances):
    for below, limit in LIMITS.items():
        median, error = timing.ratio(instances, "keras_mp", below)
        if error > max(PRECISE, abs(median - limit) / 3):
            return False
    return True


def _candidates(
    cell: Cell, policy: str, strategy, place: int
) -> dict[str, Callable[[], None]]:
    """The functions to time.

    Who is made first may find better memory: in each ``place``, it is the next one.
    """
    workload = WORKLOADS[cell.model]
    names = list(steps.COMPILE)
    first = place % len(names)
    return {
        name: steps.keras_step(
            workload, name, cell.optimizer, policy, cell.jit_compile, strategy
        )
        for name in names[first:] + names[:first]
    }


def _time_peers(cell: Cell, policy: str, rounds: int) -> dict[str, list[float]]:
    """Time other libraries, if installed, in rounds of their own.

    A step that follows one of theirs takes up to 14 % longer. In the rounds of the
    ratios that would fall on whoever happens to be next.
    """
    if cell.replicas > 1:
        return {}
    peers = {}
    if cell.jit_compile and jax_peer.is_available():
        peers["jax"] = jax_peer.jax_step(cell.model, cell.optimizer, policy)
    if not cell.jit_compile and torch_peer.is_available():
        peers["torch"] = torch_peer.torch_step(cell.model, cell.optimizer, policy)
    return timing.paired_rounds(peers, rounds)
