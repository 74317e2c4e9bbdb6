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


def instance(ratios, below=None):
    """Seconds of two candidates whose times have these ratios, round by round."""
    below = [1.0] * len(ratios) if below is None else below
    above = [ratio * each for ratio, each in zip(ratios, below, strict=True)]
    return {"above": above, "below": below}


def ratio(*instances):
    return timing.ratio(list(instances), "above", "below")


def test_a_drift_of_the_machine_leaves_the_ratio_alone():
    # Twice as slow from round to round, and always 10 % between the two.
    drifting = instance([1.1] * 5, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert ratio(drifting) == pytest.approx((1.1, 0.0))


def test_an_outlier_leaves_the_ratio_alone():
    median, _ = ratio(instance([1.0, 1.0, 9.0]))
    assert median == 1.0


def test_the_error_is_the_spread_of_the_ranks_around_the_median():
    # Of 16 ratios, what lies beyond the lowest 6 and below the highest 6.
    ratios = [1.0 + place / 100 for place in range(16)]
    _, error = ratio(instance(ratios[::-1]))
    assert error == pytest.approx((ratios[9] - ratios[6]) / 2)
    assert ratio(instance([1.5])) == (1.5, 0.0)


def test_the_error_covers_the_true_median_in_two_of_three_cases():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        # Their median is 1.
        median, error = ratio(instance(random.lognormal(sigma=0.1, size=30)))
        covered += abs(median - 1) < error
    # Between ranks that are whole numbers lies a little more or less than 68 %.
    assert 600 < covered < 760


def test_the_ratio_over_instances_is_the_median_of_their_medians():
    ratios = [1.0 + place / 100 for place in range(16)]
    # Of rounds in which the machine was slower, and with one far off.
    instances = [instance([each, each, 9.0], [1.0, 2.0, 1.0]) for each in ratios]
    median, error = ratio(*instances)
    assert median == pytest.approx(1.075)
    assert error == pytest.approx((ratios[9] - ratios[6]) / 2)


def test_a_summary_keeps_medians_and_ratios():
    instances = [instance([2.0, 2.0, 2.0]), instance([3.0, 3.0, 3.0])]
    pairs = [("above", "below"), ("above", "absent"), ("absent", "below")]
    kept = timing.summary(instances, pairs)
    assert kept == {
        "seconds": {"above": 2.5, "below": 1.0},
        "ratios": {"above / below": [2.5, 0.5]},
    }
    assert timing.milliseconds(kept, "above") == 2500.0
    assert timing.median_ratio(kept, "above", "below") == 2.5


def test_what_did_not_run_has_no_number():
    kept = timing.summary([instance([2.0])])
    assert timing.milliseconds(kept, "absent") is None
    assert timing.median_ratio(kept, "above", "absent") is None
