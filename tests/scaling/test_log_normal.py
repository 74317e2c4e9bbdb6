"""LogNormalLossScale against OpenSeq2Seq's LogMax, evaluated in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.feeding import numbers
from reference.loss_scale import FLOAT32_ROUNDING, LogMax

from keras_mp.scaling import LogNormalLossScale, Verdict

OVERFLOWED = None


def run(largests, **config):
    """Return the states after each step, each checked against the reference.

    ``OVERFLOWED`` stands for a step with an inf or a NaN. The reference starts each
    step from the rule's own scale, so that the rounding of one step is not carried
    into the next observation.
    """
    rule, reference = LogNormalLossScale(**config), LogMax(**config)
    state = rule.init()
    states = []
    for step, largest in enumerate(largests):
        finite = largest is not OVERFLOWED
        reference.scale = numbers(state)[0]
        reference.step(finite, largest)
        state = rule.update(state, Verdict(finite, largest if finite else np.nan))
        state = state._make(numbers(state))
        # The reference says how far float32 may be off, and why.
        assert state.scale == pytest.approx(
            reference.scale, rel=reference.relative_tolerance()
        ), f"scale after step {step}"
        assert state.clean_steps == reference.clean_steps
        if reference.seen:
            check_moments(state, reference)
        states.append(state)
    return states


def check_moments(state, reference):
    mean, _ = reference.moments(reference.mean_decay)
    slow_mean, deviation = reference.moments(reference.variance_decay)
    # Each step rounds a running moment and its mass about twice; log2 adds a few.
    roundings = (4 * len(reference.seen) + 8) * FLOAT32_ROUNDING
    near = {"rel": 0, "abs": roundings * reference.reach}
    assert state.mean / state.mean_mass == pytest.approx(mean, **near)
    assert state.slow_mean / state.slow_mass == pytest.approx(slow_mean, **near)
    assert state.slow_square / state.slow_mass == pytest.approx(
        slow_mean**2 + deviation**2, rel=0, abs=roundings * reference.reach**2
    )


def scales(states):
    return [state.scale for state in states]


def test_defaults_are_the_documented_ones():
    rule = LogNormalLossScale()
    assert rule.needs_largest
    assert numbers(rule.init()) == (32768.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert rule.get_config() == {
        "initial_scale": 32768.0,
        "dtype": "float16",
        "mean_decay": 0.99,
        "variance_decay": 0.999,
        "overflow_sigmas": 3.09,
        "backoff_factor": 0.5,
        "min_scale": 1.0,
        "max_scale": 16777216.0,
    }


def test_first_step_puts_the_largest_gradient_at_the_edge():
    # One observation has no spread: the scale is 2 ** (16 - log2(0.25)).
    (state,) = run([0.25])
    # sigma is the root of a difference of squares of 2 that may be off by 4 roundings.
    assert state.scale == pytest.approx(2.0**18, rel=3.09 * math.sqrt(16 * 2.0**-24))


def test_two_steps_worked_by_hand():
    # x is 0 and then -4. The weights are 1/2 and 1 for the mean, 3/4 and 1 for sigma:
    # mu = -8/3 and sigma = sqrt(0.75) / 1.75 * 4.
    states = run([1.0, 2.0**-4], mean_decay=0.5, variance_decay=0.75)
    sigma = 4.0 * math.sqrt(0.75) / 1.75
    expected = 2.0 ** (16 + 8 / 3 - 3.09 * sigma)
    # sigma is near 2, so float32 costs about 12 roundings of an exponent of 16.
    assert states[-1].scale == pytest.approx(expected, rel=12 * 16 * 2.0**-24)


def test_bias_correction_makes_early_steps_count_in_full():
    # Uncorrected, the mean after one step would be a hundredth of x, and the scale
    # 2 ** 16 for any gradient.
    for x in (-6, -3, 4):
        (state,) = run([2.0**x])
        # An exponent of at most 22, and a sigma that is the root of rounded x ** 2.
        assert math.log2(state.scale) == pytest.approx(16 - x, abs=0.02)


def test_spread_lowers_the_scale():
    narrow = run([0.1] * 10)
    wide = run([0.05, 0.2] * 5)
    assert wide[-1].scale < narrow[-1].scale / 4


def test_bfloat16_leaves_its_larger_range():
    config = {"dtype": "bfloat16", "max_scale": 2.0**120}
    (state,) = run([2.0**20], **config)
    # Exponents near 100, each rounded to 7 bits after the point or better.
    assert math.log2(state.scale) == pytest.approx(108.0, abs=0.05)


def test_bfloat16_reaches_the_default_cap():
    assert scales(run([1.0, 100.0], dtype="bfloat16")) == [2.0**24, 2.0**24]


def test_cap_is_reached_and_held():
    assert scales(run([1e-6] * 4)) == [2.0**24] * 4


def test_floor_is_reached_and_held():
    assert scales(run([1e6] * 4)) == [1.0] * 4


def test_good_bad_bad_good():
    states = run([1.0, OVERFLOWED, OVERFLOWED, 1.0])
    assert [state.clean_steps for state in states] == [1, 0, 0, 1]
    assert states[1].scale <= states[0].scale / 2
    assert states[2].scale <= states[1].scale / 2


def test_overflow_is_observed_as_the_least_it_can_have_been():
    # At scale 2 ** 12 an overflow of float16 was a gradient of at least 2 ** 4, and
    # with no other observation the rule would stay there: the backoff wins.
    rule = LogNormalLossScale(initial_scale=2.0**12)
    state = rule.update(rule.init(), Verdict(False, np.inf))
    state = state._make(numbers(state))
    # 4 roundings: of the decay, of the product, of the mass and of the quotient.
    assert state.mean / state.mean_mass == pytest.approx(4.0, rel=4 * 2.0**-24)
    assert state.slow_square / state.slow_mass == pytest.approx(16, rel=4 * 2.0**-24)
    assert state.scale == 2.0**11


def test_overflow_takes_the_lower_of_backoff_and_statistics():
    # Gradients of 2 ** 12 ask for 2 ** 4 or less, far below half of 2 ** 15.
    rule = LogNormalLossScale()
    state = rule.update(rule.init(), Verdict(True, 2.0**12))
    state = rule.update(state._replace(scale=2.0**15), Verdict(False, np.nan))
    assert numbers(state)[0] < 2.0**5


def test_backoff_factor_bounds_the_step_after_an_overflow():
    # The statistics alone would keep 2 ** 12.
    states = run([OVERFLOWED], initial_scale=2.0**12, backoff_factor=0.25)
    assert states[0].scale == 2.0**10


@pytest.mark.long
def test_200_overflows_end_at_the_floor_and_not_at_zero():
    states = run([OVERFLOWED] * 200)
    assert scales(states)[-1] == 1.0
    assert min(scales(states)) == 1.0
    assert states[14].scale == 1.0


@pytest.mark.parametrize("largest", [np.nan, np.inf, 0.0, 1.0, 1e30])
def test_largest_of_an_overflow_is_not_read(largest):
    rule = LogNormalLossScale()
    before = rule.update(rule.init(), Verdict(True, 0.5))
    after = rule.update(before, Verdict(False, largest))
    assert np.isfinite(numbers(after)).all()
    assert numbers(after) == numbers(rule.update(before, Verdict(False, 3.0)))


def test_zero_gradient_leaves_statistics_and_scale_alone():
    rule = LogNormalLossScale()
    first = rule.update(rule.init(), Verdict(True, 0.0))
    assert numbers(first) == (32768.0, 1, 0.0, 0.0, 0.0, 0.0, 0.0)
    before = rule.update(first, Verdict(True, 0.3))
    after = rule.update(before, Verdict(True, 0.0))
    assert numbers(after) == numbers(before._replace(clean_steps=3))


@pytest.mark.parametrize("largest", [1e-45, 1e-40, 1.2e-38, 3e38])
def test_extreme_gradients_leave_the_state_finite(largest):
    # Backends may take a subnormal number for 0, whose log2 is -inf.
    rule = LogNormalLossScale()
    state = rule.update(rule.init(), Verdict(True, np.float32(largest)))
    state = rule.update(state, Verdict(True, 1.0))
    assert np.isfinite(numbers(state)).all()
    assert 1.0 <= numbers(state)[0] <= 2.0**24


def test_never_asks_to_stop():
    rule = LogNormalLossScale(initial_scale=1.0)
    assert rule.exhausted(rule.init(), Verdict(False, np.nan)) is False


@pytest.mark.long
def test_long_run_of_log_normal_gradients_overflows_rarely():
    # With the decays near 1 the estimates settle: 3.09 sigmas leave one step in 1000.
    random = np.random.default_rng(0)
    x = random.normal(-3.0, 1.0, size=600)
    states = run(list(np.float32(2.0 ** x[:300]).astype(float)))
    settled = math.log2(states[-1].scale)
    # mu and sigma from 100 and 300 observations have standard errors of 0.07 and 0.04,
    # so 16 - (mu + 3.09 sigma) has one of about 0.15; 0.6 is 4 of them.
    assert settled == pytest.approx(16 + 3 - 3.09, abs=0.6)
    assert np.mean(x[300:] + settled >= 16) < 0.02


@st.composite
def configs(draw):
    exponents = draw(st.lists(st.floats(-5.0, 40.0), min_size=3, max_size=3))
    low, first, high = (float(np.float32(2.0**x)) for x in sorted(exponents))
    return {
        "min_scale": low,
        "initial_scale": first,
        "max_scale": high,
        "dtype": draw(st.sampled_from(["float16", "float16", "bfloat16"])),
        "mean_decay": draw(st.just(0.99) | st.floats(0.1, 0.9999)),
        "variance_decay": draw(st.just(0.999) | st.floats(0.1, 0.9999)),
        "overflow_sigmas": draw(st.just(3.09) | st.floats(0.1, 5.0)),
        "backoff_factor": draw(st.just(0.5) | st.floats(0.01, 0.99)),
    }


LARGESTS = st.floats(-20.0, 10.0).map(lambda x: float(np.float32(2.0**x)))


@pytest.mark.long
@given(
    config=configs(),
    largests=st.lists(
        LARGESTS | LARGESTS | st.sampled_from([0.0, OVERFLOWED]),
        min_size=5,
        max_size=60,
    ),
)
@settings(max_examples=50, deadline=None, database=None)
def test_random_steps_agree_with_the_reference(config, largests):
    for state in run(largests, **config):
        assert config["min_scale"] <= state.scale <= config["max_scale"]


SCALES = ("initial_scale", "min_scale", "max_scale")
SHARES = ("mean_decay", "variance_decay", "backoff_factor")
NUMBERS = (*SCALES, *SHARES, "overflow_sigmas")

BAD_ARGUMENTS = [
    *((n, v, TypeError) for n in NUMBERS for v in (True, False, "2", None, [2.0], 1j)),
    *((n, v, ValueError) for n in NUMBERS for v in (np.nan, np.inf, -np.inf)),
    *((n, v, ValueError) for n in NUMBERS for v in (0, 0.0, -1.0)),
    *((n, v, ValueError) for n in SHARES for v in (1, 1.0, 2.0)),
    *(
        ("dtype", v, (TypeError, ValueError))
        for v in (
            "float32",
            "mixed_float16",
            "",
            None,
            True,
            16,
            ["float16"],
            np.float16,
        )
    ),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_ARGUMENTS)
def test_bad_argument_is_named(name, value, error):
    with pytest.raises(error) as caught:
        LogNormalLossScale(**{name: value})
    assert "LogNormalLossScale" in str(caught.value)
    assert f"{name}={value!r}" in str(caught.value)
