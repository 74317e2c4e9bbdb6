"""Paired timing: all candidates take turns in one process, so that noise hits all.

A machine's speed drifts. Two candidates that are timed one after the other differ by
the drift; the ratio of their times within a round does not.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable

WARM_UP = 3  # calls that are not timed: tracing, compiling, filling caches
LEAST = 0.05  # seconds that one measurement should take at the least


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


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(_ratios(numerator, denominator))


def standard_error(numerator: list[float], denominator: list[float]) -> float:
    """How far `median_ratio` may be off: it is so near in two of three cases."""
    return _error_of_median(_ratios(numerator, denominator))


def ratio_over_instances(
    numerator: list[list[float]], denominator: list[list[float]]
) -> tuple[float, float]:
    """The median of the instances' median ratios, and how far it may be off.

    Args:
        numerator: For each instance, seconds by round.
        denominator: As ``numerator``, of the same instances and rounds.
    """
    medians = list(map(median_ratio, numerator, denominator))
    return statistics.median(medians), _error_of_median(medians)


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


def _ratios(numerator, denominator):
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


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
