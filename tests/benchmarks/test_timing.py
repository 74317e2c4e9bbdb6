"""Paired rounds: who is called when, and what the ratios are."""

import itertools

import numpy as np
import pytest

from benchmarks import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only candidates move."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def candidate(seconds, calls=None, name=None):
        seconds = itertools.cycle(seconds)

        def run():
            now[0] += next(seconds)
            if calls is not None:
                calls.append(name)

        return run

    return candidate


def test_seconds_are_those_of_one_call(clock):
    run = {"slow": clock([0.5]), "quick": clock([0.001])}
    seconds = timing.paired_rounds(run, rounds=4)
    assert seconds["slow"] == pytest.approx([0.5] * 4)
    assert seconds["quick"] == pytest.approx([0.001] * 4)


def test_quick_candidates_are_called_often_and_slow_ones_once(clock):
    calls = []
    run = {n: clock([s], calls, n) for n, s in (("slow", 0.5), ("quick", 0.001))}
    timing.paired_rounds(run, rounds=1)
    warm_up = timing.WARM_UP + 1
    assert calls.count("slow") == warm_up + 1
    assert calls.count("quick") == warm_up + 50


def test_every_candidate_is_once_the_first(clock):
    calls = []
    run = {name: clock([1.0], calls, name) for name in "abc"}
    timing.paired_rounds(run, rounds=6)
    rounds = calls[-6 * 3 :]
    assert {rounds[i] for i in range(0, 18, 3)} == set("abc")
    assert all(len(set(rounds[i : i + 3])) == 3 for i in range(0, 18, 3))


def test_a_drift_of_the_machine_leaves_the_ratio_alone():
    # Twice as slow from round to round, and always 10 % between the two.
    below = [1.0, 2.0, 4.0, 8.0, 16.0]
    above = [1.1 * value for value in below]
    assert timing.median_ratio(above, below) == pytest.approx(1.1)


def test_an_outlier_leaves_the_ratio_alone():
    assert timing.median_ratio([1.0, 1.0, 9.0], [1.0, 1.0, 1.0]) == 1.0


def test_the_error_is_the_spread_of_the_ranks_around_the_median():
    # Of 16 ratios, what lies beyond the lowest 6 and below the highest 6.
    ratios = [1.0 + place / 100 for place in range(16)]
    error = timing.standard_error(ratios[::-1], [1.0] * 16)
    assert error == pytest.approx((ratios[9] - ratios[6]) / 2)
    assert timing.standard_error([3.0], [2.0]) == 0.0


def test_the_error_covers_the_true_median_in_two_of_three_cases():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        drawn = random.lognormal(sigma=0.1, size=30)  # its median is 1
        off = timing.median_ratio(drawn, [1.0] * 30) - 1
        covered += abs(off) < timing.standard_error(drawn, [1.0] * 30)
    # Between ranks that are whole numbers lies a little more or less than 68 %.
    assert 600 < covered < 760


def test_the_ratio_over_instances_is_the_median_of_their_medians():
    ratios = [1.0 + place / 100 for place in range(16)]
    # Of rounds in which the machine was slower, and with one far off.
    above = [[ratio, 2 * ratio, 9.0] for ratio in ratios]
    below = [[1.0, 2.0, 1.0]] * 16
    median, error = timing.ratio_over_instances(above, below)
    assert median == pytest.approx(1.075)
    assert error == pytest.approx((ratios[9] - ratios[6]) / 2)
