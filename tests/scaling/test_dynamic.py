"""DynamicLossScale against GradScaler, Apex, Megatron-LM and fairseq."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.feeding import numbers
from reference.loss_scale import Dynamic

from keras_mp.scaling import DynamicLossScale, Verdict

GOOD, BAD = True, False


def run(verdicts, **config):
    """Return the states after each step, each checked against the reference.

    The scales are compared exactly: both sides multiply in float32, correctly rounded.
    """
    rule, reference = DynamicLossScale(**config), Dynamic(**config)
    state = rule.init()
    assert numbers(state) == reference.state()
    states = []
    for step, finite in enumerate(verdicts):
        verdict = Verdict(finite)
        stuck = rule.exhausted(state, verdict)
        state = rule.update(state, verdict)
        assert bool(stuck) == reference.step(finite), f"exhausted at step {step}"
        assert numbers(state) == reference.state(), f"state after step {step}"
        states.append(state._make(numbers(state)))
    return states


def scales(states):
    return [state.scale for state in states]


def clean_steps(states):
    return [state.clean_steps for state in states]


def hysteresis_left(states):
    return [state.hysteresis_left for state in states]


def test_defaults_are_the_documented_ones():
    state = DynamicLossScale().init()
    assert numbers(state) == (32768.0, 0, 1, 0, 0)
    assert DynamicLossScale().get_config() == {
        "initial_scale": 32768.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "min_scale": 1.0,
        "max_scale": 16777216.0,
        "hysteresis": 1,
        "hysteresis_refill": "growth",
        "overflow_tolerance": 0.0,
        "on_floor": "hold",
    }


def test_good_bad_bad_good():
    states = run([GOOD, BAD, BAD, GOOD], initial_scale=1024.0)
    assert scales(states) == [1024.0, 512.0, 256.0, 256.0]
    assert clean_steps(states) == [1, 0, 0, 1]


def test_factors_other_than_two_and_a_half():
    states = run(
        [GOOD, GOOD, BAD, BAD],
        initial_scale=16.0,
        growth_factor=3.0,
        backoff_factor=0.25,
        growth_interval=2,
    )
    assert scales(states) == [16.0, 48.0, 12.0, 3.0]


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_growth_comes_on_the_nth_clean_step_exactly(interval):
    states = run(
        [GOOD] * (2 * interval + 1), initial_scale=8.0, growth_interval=interval
    )
    grown = [step for step, state in enumerate(states, 1) if state.clean_steps == 0]
    assert grown[:2] == [interval, 2 * interval]
    before = [8.0] * (interval - 1)
    assert scales(states)[:interval] == [*before, 16.0]
    assert states[2 * interval - 1].scale == 32.0


def test_overflow_one_step_before_growth_starts_the_run_again():
    states = run([GOOD, GOOD, BAD] + [GOOD] * 3, initial_scale=8.0, growth_interval=3)
    assert scales(states) == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0]


def test_clean_run_longer_than_the_interval_grows_at_the_next_clean_step():
    # A checkpoint written under a longer interval.
    rule = DynamicLossScale(initial_scale=8.0, growth_interval=10)
    state = rule.update(rule.init()._replace(clean_steps=1999), Verdict(GOOD))
    assert numbers(state)[:2] == (16.0, 0)


def test_cap_is_reached_and_held_and_the_run_restarts_there():
    states = run(
        [GOOD] * 7,
        initial_scale=24.0,
        max_scale=64.0,
        growth_interval=2,
        hysteresis=3,
        overflow_tolerance=0.1,
    )
    assert scales(states) == [24.0, 48.0, 48.0, 64.0, 64.0, 64.0, 64.0]
    assert clean_steps(states) == [1, 0, 1, 0, 1, 0, 1]
    assert [state.steps_since_rescale for state in states] == [1, 0, 1, 0, 1, 0, 1]


def test_growth_at_the_cap_forgets_overflows_and_refills_hysteresis():
    states = run(
        [BAD, GOOD, GOOD, BAD],
        initial_scale=64.0,
        max_scale=64.0,
        growth_interval=2,
        hysteresis=2,
        overflow_tolerance=0.1,
    )
    assert scales(states) == [64.0] * 4
    assert hysteresis_left(states) == [1, 1, 2, 1]
    assert [state.overflows_since_rescale for state in states] == [1, 1, 0, 1]


def test_floor_is_reached_and_held():
    states = run([BAD] * 4 + [GOOD] * 2, min_scale=3.0, initial_scale=10.0)
    assert scales(states) == [5.0, 3.0, 3.0, 3.0, 3.0, 3.0]


def test_200_overflows_end_at_the_floor_and_not_at_zero():
    states = run([BAD] * 200)
    assert scales(states)[13:16] == [2.0, 1.0, 1.0]
    assert scales(states)[-1] == 1.0
    assert min(scales(states)) == 1.0


def test_scale_recovers_from_the_floor():
    states = run([BAD] * 3 + [GOOD] * 2, initial_scale=2.0, growth_interval=1)
    assert scales(states) == [1.0, 1.0, 1.0, 2.0, 4.0]


def test_floor_that_float32_rounds_is_the_rounded_one():
    states = run([BAD] * 3, initial_scale=0.2, min_scale=0.1, on_floor="raise")
    assert scales(states)[-1] == float(np.float32(0.1))


@pytest.mark.parametrize("largest", [np.nan, np.inf, 0.0, 1.0])
@pytest.mark.parametrize("finite", [GOOD, BAD])
def test_largest_is_not_read(finite, largest):
    rule = DynamicLossScale(initial_scale=8.0, growth_interval=1)
    assert not rule.needs_largest
    state = rule.update(rule.init(), Verdict(finite, largest))
    assert numbers(state)[0] == (16.0 if finite else 4.0)


@pytest.mark.parametrize("refill", ["growth", "clean"])
def test_hysteresis_delays_the_first_backoff_only(refill):
    states = run(
        [BAD] * 5, initial_scale=1024.0, hysteresis=3, hysteresis_refill=refill
    )
    assert scales(states) == [1024.0, 1024.0, 512.0, 256.0, 128.0]
    assert hysteresis_left(states) == [2, 1, 0, 0, 0]


def test_apex_refills_hysteresis_at_any_clean_step():
    states = run(
        [BAD, GOOD, BAD, BAD, BAD, GOOD, BAD],
        initial_scale=1024.0,
        hysteresis=2,
        hysteresis_refill="clean",
    )
    assert scales(states) == [1024.0, 1024.0, 1024.0, 512.0, 256.0, 256.0, 256.0]
    assert hysteresis_left(states) == [1, 2, 1, 0, 0, 2, 1]


def test_megatron_refills_hysteresis_when_a_growth_interval_completes():
    states = run(
        [BAD, GOOD, BAD, BAD, GOOD, BAD, GOOD, GOOD, BAD, BAD],
        initial_scale=1024.0,
        hysteresis=2,
        growth_interval=2,
        hysteresis_refill="growth",
    )
    assert scales(states) == [
        *(1024.0, 1024.0),  # one overflow, one left
        *(512.0, 256.0, 256.0, 128.0),  # used up: a lone clean step refills nothing
        *(128.0, 256.0),  # the interval completes
        *(256.0, 128.0),  # refilled: the first overflow is free again
    ]
    assert hysteresis_left(states) == [1, 1, 0, 0, 0, 0, 0, 2, 1, 0]


def test_overflow_within_hysteresis_restarts_the_clean_run():
    states = run(
        [GOOD, GOOD, BAD, GOOD, GOOD, GOOD],
        initial_scale=8.0,
        hysteresis=2,
        growth_interval=3,
    )
    assert scales(states) == [8.0] * 5 + [16.0]


def test_tolerated_overflow_spares_the_scale_but_restarts_the_clean_run():
    states = run(
        [GOOD] * 4 + [BAD] + [GOOD] * 5, growth_interval=5, overflow_tolerance=0.25
    )
    # 1 overflow in 5 steps is below a quarter.
    assert scales(states) == [32768.0] * 9 + [65536.0]
    assert clean_steps(states) == [1, 2, 3, 4, 0, 1, 2, 3, 4, 0]


def test_share_of_overflows_equal_to_the_tolerance_backs_off():
    states = run([GOOD] * 3 + [BAD], overflow_tolerance=0.25)
    assert scales(states)[-2:] == [32768.0, 16384.0]


def test_backoff_starts_the_share_of_overflows_again():
    states = run([GOOD, BAD, GOOD, GOOD, BAD, BAD], overflow_tolerance=0.5)
    # 1 of 2; then 1 of 3 and, after two in a row, 2 of 4.
    assert scales(states) == [32768.0, 16384.0, 16384.0, 16384.0, 16384.0, 8192.0]
    assert [state.steps_since_rescale for state in states] == [1, 0, 1, 2, 3, 0]
    assert [state.overflows_since_rescale for state in states] == [0, 0, 0, 0, 1, 0]


def test_growth_starts_the_share_of_overflows_again():
    states = run(
        [GOOD, GOOD, BAD, GOOD, GOOD, GOOD, BAD],
        initial_scale=8.0,
        overflow_tolerance=0.5,
        growth_interval=3,
    )
    # 1 of 3 is tolerated, and again 1 of 1 after the growth is not.
    assert scales(states) == [8.0] * 5 + [16.0, 8.0]


def test_backoff_at_the_floor_starts_the_share_of_overflows_again():
    states = run([BAD, GOOD, GOOD, BAD], initial_scale=1.0, overflow_tolerance=0.5)
    assert [state.steps_since_rescale for state in states] == [0, 1, 2, 3]
    assert [state.overflows_since_rescale for state in states] == [0, 0, 0, 1]


def test_tolerated_overflow_uses_up_no_hysteresis():
    states = run(
        [GOOD] * 4 + [BAD, BAD, BAD],
        hysteresis=2,
        overflow_tolerance=0.25,
        initial_scale=1024.0,
    )
    # 1 of 5 is tolerated; 2 of 6 and 3 of 7 count.
    assert hysteresis_left(states) == [2] * 5 + [1, 0]
    assert scales(states) == [1024.0] * 6 + [512.0]


def test_overflow_within_hysteresis_keeps_counting_the_share():
    states = run([BAD, GOOD, BAD], hysteresis=2, overflow_tolerance=0.6)
    assert [state.steps_since_rescale for state in states] == [1, 2, 0]
    assert [state.overflows_since_rescale for state in states] == [1, 1, 0]


def test_what_no_option_asks_for_is_not_counted():
    state = DynamicLossScale().init()
    after = DynamicLossScale().update(state, Verdict(BAD))
    # The same objects: the optimizer assigns none of them.
    assert all(old is new for old, new in zip(state[2:], after[2:], strict=True))


def share_state(rule, overflows, steps):
    """Return a state whose next overflow is number ``overflows`` of ``steps``."""
    return rule.init()._replace(
        steps_since_rescale=np.int64(steps - 1),
        overflows_since_rescale=np.int64(overflows - 1),
    )


@pytest.mark.parametrize(
    ("tolerance", "overflows", "steps"),
    [
        (0.05, 1, 20),
        (0.1, 3, 30),
        (0.15, 15, 100),
        (0.3, 3, 10),
        (7 / 13, 7, 13),
        (1 / 3, 1, 3),
        (2 / 3, 400, 600),
    ],
)
def test_tolerance_is_reached_exactly(tolerance, overflows, steps):
    rule = DynamicLossScale(overflow_tolerance=tolerance)
    state = share_state(rule, overflows, steps)
    assert numbers(rule.update(state, Verdict(BAD)))[0] == 16384.0
    state = share_state(rule, overflows, steps + 1)
    assert numbers(rule.update(state, Verdict(BAD)))[0] == 32768.0


@pytest.mark.long
def test_every_share_of_few_steps_reaches_itself_as_tolerance():
    missed = []
    for steps in range(2, 31):
        for overflows in range(1, steps):
            rule = DynamicLossScale(overflow_tolerance=overflows / steps)
            state = share_state(rule, overflows, steps)
            if numbers(rule.update(state, Verdict(BAD)))[0] != 16384.0:
                missed.append(f"{overflows}/{steps}")
    assert missed == []


def test_exhausted_at_the_floor_only_and_before_the_update():
    rule = DynamicLossScale(initial_scale=2.0, on_floor="raise")
    state = rule.init()
    assert not rule.exhausted(state, Verdict(BAD))
    state = rule.update(state, Verdict(BAD))
    assert numbers(state)[0] == 1.0
    assert not rule.exhausted(state, Verdict(GOOD))
    assert rule.exhausted(state, Verdict(BAD))


def test_exhausted_waits_for_hysteresis_and_tolerance():
    options = {"initial_scale": 1.0, "on_floor": "raise"}
    rule = DynamicLossScale(hysteresis=2, **options)
    state = rule.init()
    assert not rule.exhausted(state, Verdict(BAD))
    assert rule.exhausted(rule.update(state, Verdict(BAD)), Verdict(BAD))
    rule = DynamicLossScale(overflow_tolerance=0.5, **options)
    state = rule.init()
    for _ in range(2):
        state = rule.update(state, Verdict(GOOD))
    assert not rule.exhausted(state, Verdict(BAD))
    assert rule.exhausted(rule.update(state, Verdict(BAD)), Verdict(BAD))


def test_never_exhausted_when_holding():
    rule = DynamicLossScale(initial_scale=1.0)
    assert rule.exhausted(rule.init(), Verdict(BAD)) is False


@st.composite
def configs(draw):
    """Valid hyperparameters whose floor and cap are within reach of 60 steps."""
    exponents = draw(st.lists(st.floats(-5.0, 9.0), min_size=3, max_size=3))
    low, first, high = (float(np.float32(2.0**x)) for x in sorted(exponents))
    return {
        "min_scale": low,
        "initial_scale": first,
        "max_scale": high,
        "growth_factor": draw(st.just(2.0) | st.floats(1.01, 16.0)),
        "backoff_factor": draw(st.just(0.5) | st.floats(0.01, 0.99)),
        "growth_interval": draw(st.integers(1, 6)),
        "hysteresis": draw(st.integers(1, 4)),
        "hysteresis_refill": draw(st.sampled_from(["growth", "clean"])),
        # Sixteenths are exact in every float type: no rounding decides a comparison.
        # The shares that are not are tested one by one above.
        "overflow_tolerance": draw(
            st.just(0.0) | st.integers(0, 15).map(lambda n: n / 16)
        ),
        "on_floor": draw(st.sampled_from(["hold", "raise"])),
    }


@pytest.mark.long
@given(
    config=configs(),
    verdicts=st.lists(
        st.sampled_from([GOOD, GOOD, GOOD, BAD]), min_size=20, max_size=60
    ),
)
@settings(max_examples=60, deadline=None, database=None)
def test_random_steps_agree_with_the_reference(config, verdicts):
    for state in run(verdicts, **config):
        assert config["min_scale"] <= state.scale <= config["max_scale"]


SCALES = ("initial_scale", "min_scale", "max_scale")
FACTORS = ("growth_factor", "backoff_factor")
COUNTS = ("growth_interval", "hysteresis")
CHOICES = ("hysteresis_refill", "on_floor")
NUMBERS = (*SCALES, *FACTORS, "overflow_tolerance")

BAD_ARGUMENTS = [
    *((n, v, TypeError) for n in NUMBERS for v in (True, False, "2", None, [2.0], 1j)),
    *((n, v, ValueError) for n in NUMBERS for v in (np.nan, np.inf, -np.inf, -1.0)),
    *((n, v, ValueError) for n in (*SCALES, *FACTORS) for v in (0, 0.0)),
    *(("growth_factor", v, ValueError) for v in (1, 1.0, 0.5)),
    *(("backoff_factor", v, ValueError) for v in (1, 1.0, 2.0)),
    *(("overflow_tolerance", v, ValueError) for v in (1, 1.0, 1.5, -0.1)),
    *((n, v, TypeError) for n in COUNTS for v in (True, False, "2", None, 2.0, 1.5)),
    *((n, v, TypeError) for n in COUNTS for v in (np.nan, np.inf)),
    *((n, v, ValueError) for n in COUNTS for v in (0, -1, np.int64(0))),
    *(
        (n, v, (TypeError, ValueError))
        for n in CHOICES
        for v in ("never", "", "Hold", None, True, 1, ["growth"])
    ),
    ("hysteresis_refill", "hold", ValueError),
    ("on_floor", "clean", ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_ARGUMENTS)
def test_bad_argument_is_named(name, value, error):
    with pytest.raises(error) as caught:
        DynamicLossScale(**{name: value})
    assert "DynamicLossScale" in str(caught.value)
    assert f"{name}={value!r}" in str(caught.value)


def test_scales_may_be_equal():
    states = run([BAD, GOOD], initial_scale=8.0, min_scale=8.0, max_scale=8.0)
    assert scales(states) == [8.0, 8.0]


def test_any_real_and_whole_numbers_are_taken():
    rule = DynamicLossScale(
        initial_scale=8, growth_factor=np.float32(2), growth_interval=np.int32(5)
    )
    assert rule == DynamicLossScale(initial_scale=8.0, growth_interval=5)
    assert type(rule.initial_scale) is type(rule.growth_factor) is float
    assert type(rule.growth_interval) is int
