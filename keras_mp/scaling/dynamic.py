"""Dynamic loss scaling: grow after clean steps, back off after overflows.

The rule of Micikevicius et al., "Mixed Precision Training" (2018), with the options
that NVIDIA Apex, DeepSpeed, Megatron-LM and fairseq added to it.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_mp.saving import register
from keras_mp.scaling import base


class DynamicState(NamedTuple):
    """State of `DynamicLossScale`; every field is a scalar.

    Attributes:
        scale: float32, what the next loss is multiplied by.
        clean_steps: int, finite steps since the last overflow or growth.
        hysteresis_left: int, overflows still to come before the scale backs off;
            always 1 with a ``hysteresis`` of 1.
        steps_since_rescale: int, steps since the scale was last changed by the rule;
            counted only if ``overflow_tolerance`` is above 0.
        overflows_since_rescale: int, how many of those overflowed.
    """

    scale: Any
    clean_steps: Any
    hysteresis_left: Any
    steps_since_rescale: Any
    overflows_since_rescale: Any


@register
@dataclasses.dataclass(frozen=True)
class DynamicLossScale(base.LossScale):
    """Grow the scale after a run of clean steps, shrink it after overflows.

    After ``growth_interval`` consecutive finite steps the scale is multiplied by
    ``growth_factor``; after an overflow it is multiplied by ``backoff_factor``. It
    never leaves ``[min_scale, max_scale]``, so it can reach neither 0 nor inf. The rule
    is that of Micikevicius et al., "Mixed Precision Training" (2018).

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

    def __post_init__(self) -> None:
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

    def init(self) -> DynamicState:
        return DynamicState(
            scale=np.float32(self.initial_scale),
            clean_steps=np.int64(0),
            hysteresis_left=np.int64(self.hysteresis),
            steps_since_rescale=np.int64(0),
            overflows_since_rescale=np.int64(0),
        )

    def update(self, state: DynamicState, verdict: base.Verdict) -> DynamicState:
        finite = ops.cast(verdict.finite, "bool")
        state, back_off = self._count(state, finite)
        clean_steps = ops.where(finite, state.clean_steps + 1, 0)
        grow = ops.greater_equal(clean_steps, self.growth_interval)
        growth, backoff, same = map(
            base.float32, (self.growth_factor, self.backoff_factor, 1.0)
        )
        factor = ops.where(grow, growth, ops.where(back_off, backoff, same))
        scale = ops.multiply(state.scale, factor)
        state = state._replace(
            scale=ops.clip(scale, self.min_scale, self.max_scale),
            clean_steps=ops.where(grow, 0, clean_steps),
        )
        if self._tolerates:
            rescale = ops.logical_or(grow, back_off)
            state = state._replace(
                steps_since_rescale=ops.where(rescale, 0, state.steps_since_rescale),
                overflows_since_rescale=ops.where(
                    rescale, 0, state.overflows_since_rescale
                ),
            )
        if self._waits:
            refill = grow if self.hysteresis_refill == "growth" else finite
            left = ops.where(refill, self.hysteresis, state.hysteresis_left)
            state = state._replace(hysteresis_left=left)
        return state

    def exhausted(self, state: DynamicState, verdict: base.Verdict) -> Any:
        if self.on_floor == "hold":
            return False
        _, back_off = self._count(state, ops.cast(verdict.finite, "bool"))
        return ops.logical_and(back_off, ops.less_equal(state.scale, self.min_scale))

    def adopt(self, state: DynamicState) -> DynamicState:
        return state._replace(
            scale=base.clipped_scale(state.scale, self.min_scale, self.max_scale)
        )

    @property
    def _tolerates(self) -> bool:
        return self.overflow_tolerance > 0

    @property
    def _waits(self) -> bool:
        return self.hysteresis > 1

    def _count(self, state: DynamicState, finite: Any) -> tuple[DynamicState, Any]:
        """Return the state with this step's overflow counted, and whether to back off.

        Only what an option needs is counted: each count takes a measurable part of a
        step of a millisecond.
        """
        back_off = ops.logical_not(finite)
        if self._tolerates:
            steps = state.steps_since_rescale + 1
            overflows = ops.add(state.overflows_since_rescale, _as_count(back_off))
            state = state._replace(
                steps_since_rescale=steps, overflows_since_rescale=overflows
            )
            # Division is correctly rounded, so that 1/4 equals a tolerance of 0.25.
            rate = ops.divide(
                ops.cast(overflows, "float32"), ops.cast(steps, "float32")
            )
            intolerable = ops.greater_equal(rate, base.float32(self.overflow_tolerance))
            back_off = ops.logical_and(back_off, intolerable)
        if self._waits:
            left = ops.subtract(state.hysteresis_left, _as_count(back_off))
            left = ops.maximum(left, 0)
            state = state._replace(hysteresis_left=left)
            back_off = ops.logical_and(back_off, ops.equal(left, 0))
        return state, back_off


def _as_count(event: Any) -> Any:
    """Return 1 where ``event`` is true and 0 where it is not."""
    return ops.cast(event, "int32")
