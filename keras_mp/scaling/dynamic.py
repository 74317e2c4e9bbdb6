"""Dynamic loss scaling: grow after clean steps, back off after overflows.

The rule of Micikevicius et al., "Mixed Precision Training" (2018), with the options
that NVIDIA Apex, DeepSpeed, Megatron-LM and fairseq added to it.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_mp.scaling import base


class DynamicState(NamedTuple):
    """State of `DynamicLossScale`; every field is a scalar.

    Attributes:
        scale: float32, what the next loss is multiplied by.
        clean_steps: int, finite steps since the last overflow or growth.
        hysteresis_left: int, overflows still to come before the scale backs off.
        steps_since_rescale: int, steps since the scale was last changed by the rule.
        overflows_since_rescale: int, how many of those overflowed.
    """

    scale: object
    clean_steps: object
    hysteresis_left: object
    steps_since_rescale: object
    overflows_since_rescale: object


@base.register
@dataclasses.dataclass(frozen=True)
class DynamicLossScale(base.LossScale):
    """Grow the scale after a run of clean steps, shrink it after overflows.

    After ``growth_interval`` consecutive finite steps the scale is multiplied by
    ``growth_factor``; after an overflow it is multiplied by ``backoff_factor``. It
    never leaves ``[min_scale, max_scale]``, so it can reach neither 0 nor inf.

    Args:
        initial_scale: First scale, a finite number above 0.
        growth_factor: Multiplier above 1.
        backoff_factor: Multiplier between 0 and 1.
        growth_interval: Consecutive finite steps before the scale grows.
        min_scale: Floor of the scale.
        max_scale: Cap of the scale.
        hysteresis: Overflows before the scale backs off. 1 backs off at the first.
            Once used up, every further overflow backs off until it is refilled.
        hysteresis_refill: ``"growth"`` refills the hysteresis when a growth interval
            completes (Megatron-LM; DeepSpeed's default), ``"clean"`` at every finite
            step (Apex; DeepSpeed's ``consecutive_hysteresis``).
        overflow_tolerance: Share of overflows, from 0 up to but not including 1, that
            is tolerated: an overflow counts only if the overflows since the scale last
            changed are at least this share of the steps since then (fairseq).
        on_floor: ``"hold"`` keeps the scale at ``min_scale`` when a step overflows
            there; ``"raise"`` makes the optimizer raise an error (DeepSpeed, fairseq).

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of its range, or the floor is above the cap.

    Example:

    >>> rule = DynamicLossScale(initial_scale=1024.0, growth_interval=2)
    >>> state = rule.init()
    >>> state = rule.update(state, Verdict(finite=False))
    >>> float(state.scale)
    512.0
    """

    initial_scale: float = 2.0**15
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    min_scale: float = 1.0
    max_scale: float = 2.0**24
    hysteresis: int = 1
    hysteresis_refill: str = "growth"
    overflow_tolerance: float = 0.0
    on_floor: str = "hold"

    def __post_init__(self):
        owner = "keras_mp.scaling.DynamicLossScale"
        minimum, initial, maximum = base.checked_range(
            owner, self.min_scale, self.initial_scale, self.max_scale
        )
        base.checked_choice(
            owner, "hysteresis_refill", self.hysteresis_refill, ("growth", "clean")
        )
        base.checked_choice(owner, "on_floor", self.on_floor, ("hold", "raise"))
        self._store(
            min_scale=minimum,
            initial_scale=initial,
            max_scale=maximum,
            growth_factor=base.checked_number(
                owner, "growth_factor", self.growth_factor, above=1.0
            ),
            backoff_factor=base.checked_number(
                owner, "backoff_factor", self.backoff_factor, below=1.0
            ),
            growth_interval=base.checked_count(
                owner, "growth_interval", self.growth_interval
            ),
            hysteresis=base.checked_count(owner, "hysteresis", self.hysteresis),
            overflow_tolerance=base.checked_number(
                owner,
                "overflow_tolerance",
                self.overflow_tolerance,
                above=-math.ulp(0.0),
                below=1.0,
                needs="a share from 0 up to but not including 1",
            ),
        )

    def init(self):
        return DynamicState(
            scale=np.float32(self.initial_scale),
            clean_steps=np.int64(0),
            hysteresis_left=np.int64(self.hysteresis),
            steps_since_rescale=np.int64(0),
            overflows_since_rescale=np.int64(0),
        )

    def update(self, state, verdict):
        finite = ops.cast(verdict.finite, "bool")
        steps, overflows, hysteresis_left, back_off = self._count(state, finite)
        clean_steps = ops.where(finite, state.clean_steps + 1, 0)
        grow = ops.greater_equal(clean_steps, self.growth_interval)
        refill = grow if self.hysteresis_refill == "growth" else finite
        rescale = ops.logical_or(grow, back_off)
        growth, backoff, same = map(
            base.float32, (self.growth_factor, self.backoff_factor, 1.0)
        )
        factor = ops.where(grow, growth, ops.where(back_off, backoff, same))
        return DynamicState(
            scale=ops.clip(
                ops.multiply(state.scale, factor), self.min_scale, self.max_scale
            ),
            clean_steps=ops.where(grow, 0, clean_steps),
            hysteresis_left=ops.where(refill, self.hysteresis, hysteresis_left),
            steps_since_rescale=ops.where(rescale, 0, steps),
            overflows_since_rescale=ops.where(rescale, 0, overflows),
        )

    def exhausted(self, state, verdict):
        if self.on_floor == "hold":
            return False
        back_off = self._count(state, ops.cast(verdict.finite, "bool"))[-1]
        return ops.logical_and(back_off, ops.less_equal(state.scale, self.min_scale))

    def adopt(self, state):
        return state._replace(
            scale=base.clipped_scale(state.scale, self.min_scale, self.max_scale)
        )

    def _count(self, state, finite):
        """Count this step: (steps, overflows, hysteresis left, whether to back off)."""
        bad = ops.logical_not(finite)
        steps = state.steps_since_rescale + 1
        overflows = ops.add(state.overflows_since_rescale, _as_count(bad))
        # Division rounds correctly: a rate that equals the tolerance compares equal.
        rate = ops.divide(ops.cast(overflows, "float32"), ops.cast(steps, "float32"))
        intolerable = ops.greater_equal(rate, base.float32(self.overflow_tolerance))
        strike = ops.logical_and(bad, intolerable)
        hysteresis_left = ops.maximum(
            ops.subtract(state.hysteresis_left, _as_count(strike)), 0
        )
        back_off = ops.logical_and(strike, ops.equal(hysteresis_left, 0))
        return steps, overflows, hysteresis_left, back_off


def _as_count(event):
    """Return 1 where ``event`` is true and 0 where it is not."""
    return ops.cast(event, "int32")
