"""StaticLossScale: one scale, clean steps counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.feeding import numbers
from reference.loss_scale import Static

from keras_mp.scaling import StaticLossScale, Verdict


def test_good_bad_bad_good_counts_clean_steps_and_keeps_the_scale():
    rule = StaticLossScale(128.0)
    state = rule.init()
    assert numbers(state) == (128.0, 0)
    seen = []
    for finite in (True, True, False, False, True):
        state = rule.update(state, Verdict(finite))
        seen.append(numbers(state))
    assert seen == [(128.0, 1), (128.0, 2), (128.0, 0), (128.0, 0), (128.0, 1)]


@given(
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    verdicts=st.lists(st.booleans(), min_size=1, max_size=20),
)
@settings(max_examples=20, deadline=None, database=None)
def test_random_steps_agree_with_the_reference(scale, verdicts):
    rule, reference = StaticLossScale(scale), Static(scale)
    state = rule.init()
    for finite in verdicts:
        state = rule.update(state, Verdict(finite))
        reference.step(finite)
        assert numbers(state) == reference.state()


@pytest.mark.parametrize("largest", [np.nan, np.inf, 0.0, 1.0])
def test_largest_is_not_read(largest):
    rule = StaticLossScale(4.0)
    assert not rule.needs_largest
    assert numbers(rule.update(rule.init(), Verdict(False, largest))) == (4.0, 0)


@pytest.mark.parametrize("scale", [0.0, np.inf, -np.inf, np.nan, -1.0, 3.0])
def test_adopting_any_checkpoint_keeps_the_configured_scale(scale):
    rule = StaticLossScale(128.0)
    adopted = rule.adopt(rule.init()._replace(scale=scale, clean_steps=7))
    assert numbers(adopted) == (128.0, 7)


def test_initial_scale_is_the_scale():
    assert StaticLossScale(64.0).initial_scale == 64.0


def test_never_asks_to_stop():
    rule = StaticLossScale(1.0)
    assert rule.exhausted(rule.init(), Verdict(False)) is False


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((value, TypeError) for value in (True, False, "128", None, [1.0], 1j)),
        *((value, ValueError) for value in (0, 0.0, -1, -0.5)),
        *((value, ValueError) for value in (np.nan, np.inf, -np.inf)),
    ],
)
def test_bad_scale_is_named(value, error):
    with pytest.raises(error) as caught:
        StaticLossScale(value)
    assert "StaticLossScale" in str(caught.value)
    assert "`scale`" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [1e39, 1e-50])
def test_scale_that_float32_cannot_hold_is_refused(value):
    # As a float32, the type of the state, these are inf and 0.
    with pytest.raises(ValueError, match="scale"):
        StaticLossScale(value)


@pytest.mark.parametrize("value", [128, np.float32(128), np.int64(128), 128.0])
def test_any_real_number_is_taken_as_a_float(value):
    rule = StaticLossScale(value)
    assert type(rule.scale) is float
    assert rule == StaticLossScale(128.0)
