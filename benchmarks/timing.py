"""Paired timing: all candidates take turns in one process, so that noise hits all.

A machine's speed drifts. Two candidates that are timed one after the other differ by
the drift; the ratio of their times within a round does not.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable

WARM_UP = 3  # calls that are not timed: tracing, compiling, filling caches
LEAST = 0.05  # seconds that one measurement should take at the least

#: A median and its standard error: it is so near in two of three cases.
Ratio = tuple[float, float]


def paired_rounds(
    candidates: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    """Time each candidate once a round, each round in another order.

    Args:
        candidates: Functions by name; each does one step and waits for its end.
        rounds: Number of rounds.

    Returns:
        For each name, seconds per call in each round.
    """
    calls = {name: _calls_needed(run) for name, run in candidates.items()}
    seconds = {name: [] for name in candidates}
    orders = itertools.cycle(_rotations(list(candidates)))
    for order in itertools.islice(orders, rounds):
        for name in order:
            seconds[name].append(_time(candidates[name], calls[name]))
    return seconds


def ratio(instances: list[dict[str, list[float]]], above: str, below: str) -> Ratio:
    """Return the median ratio of two candidates' times, and its standard error.

    Of several instances, the median of their medians; of one, the median over its
    rounds.

    Args:
        instances: What `paired_rounds` returned, for each instance.
        above: The candidate whose times are divided.
        below: The candidate whose times, in the same rounds, they are divided by.
    """
    ratios = [
        [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        for seconds in instances
    ]
    values = ratios[0] if len(ratios) == 1 else list(map(statistics.median, ratios))
    return statistics.median(values), _error_of_median(values)


def summary(
    instances: list[dict[str, list[float]]], pairs: Iterable[tuple[str, str]] = ()
) -> dict[str, dict]:
    """Return what is kept of the rounds, as values for JSON.

    Args:
        instances: What `paired_rounds` returned, for each instance.
        pairs: The candidates to compare, as ``above`` and ``below`` of `ratio`. A pair
            is left out if one of them did not run.

    Returns:
        ``seconds``, the median time of a step by candidate, and ``ratios``: by
        ``"above / below"`` the median ratio and its standard error.
    """
    names = instances[0]
    return {
        "seconds": {
            name: statistics.median(
                itertools.chain(*(seconds[name] for seconds in instances))
            )
            for name in names
        },
        "ratios": {
            f"{above} / {below}": list(ratio(instances, above, below))
            for above, below in pairs
            if above in names and below in names
        },
    }


def milliseconds(result: dict, candidate: str) -> float | None:
    """Return the median time in a `summary`; None if the candidate did not run."""
    seconds = result["seconds"].get(candidate)
    return seconds and seconds * 1000


def median_ratio(result: dict, above: str, below: str) -> float | None:
    """Return the median ratio in a `summary`; None if a candidate did not run."""
    median, _ = result["ratios"].get(f"{above} / {below}", (None, None))
    return median


def _error_of_median(values):
    """The standard error of the median of ``values``, whatever their distribution.

    From order statistics: of n values, those of rank (n - sqrt(n)) / 2 and
    (n + sqrt(n)) / 2 have the true median between them in two of three cases (the
    binomial distribution's standard deviation).
    """
    values = sorted(values)
    middle, reach = len(values) / 2, math.sqrt(len(values)) / 2
    low = values[math.floor(middle - reach)]
    high = values[math.ceil(middle + reach) - 1]
    return (high - low) / 2


def _rotations(names):
    """Every candidate in every place; of three, each also after each other one."""
    turned = [names[i:] + names[:i] for i in range(len(names))]
    return [order for names in turned for order in (names, names[::-1])]


def _calls_needed(run):
    for _ in range(WARM_UP):
        run()
    return max(1, round(LEAST / _time(run, 1)))


def _time(run, calls):
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
