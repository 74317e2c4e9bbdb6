"""Statistical loss scaling: the scale follows the spread of the gradients.

The "LogMax" rule of OpenSeq2Seq (Kuchaiev et al., "Mixed-Precision Training for NLP
and Speech Recognition with OpenSeq2Seq", 2018): the largest gradient of a step is
assumed to be log-normal, and the scale is set so that overflows are rare.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_mp.saving import register
from keras_mp.scaling import base

#: Finite values of these dtypes are below 2 ** exponent.
LARGEST_EXPONENT = {"float16": 16, "bfloat16": 128}


class LogNormalState(NamedTuple):
    """State of `LogNormalLossScale`; every field is a scalar.

    ``x`` below is log2 of a step's largest absolute unscaled gradient.

    Attributes:
        scale: float32, what the next loss is multiplied by.
        clean_steps: int, finite steps since the last overflow.
        mean: float32, running mean of x with ``mean_decay``, not bias-corrected.
        mean_mass: float32, the same running mean of 1: what corrects the bias.
        slow_mean: float32, running mean of x with ``variance_decay``.
        slow_square: float32, running mean of x squared with ``variance_decay``.
        slow_mass: float32, the same running mean of 1.
    """

    scale: Any
    clean_steps: Any
    mean: Any
    mean_mass: Any
    slow_mean: Any
    slow_square: Any
    slow_mass: Any


@register
@dataclasses.dataclass(frozen=True)
class LogNormalLossScale(base.LossScale):
    """Set the scale from running statistics of the largest gradient.

    With x = log2(largest absolute unscaled gradient), mu its running mean and sigma
    its running standard deviation, both bias-corrected, the scale is
    ``2 ** (E - (mu + overflow_sigmas * sigma))``, clipped to the range, where E is the
    exponent at which the dtype overflows. 3.09 sigmas make an overflow about one step
    in a thousand.

    Two cases that the paper leaves open are handled so: a step that overflowed is
    observed as ``x = E - log2(scale)``, the least it can have been, and the next scale
    is at most ``backoff_factor`` times the last. A step whose gradients are all zero
    leaves the statistics as they are.

    The rule is the "LogMax" scaling of Kuchaiev et al., "Mixed-Precision Training for
    NLP and Speech Recognition with OpenSeq2Seq" (2018).

    Args:
        initial_scale: Scale of the first step.
        dtype: ``"float16"`` or ``"bfloat16"``, the compute dtype that must not
            overflow.
        mean_decay: Decay of the running mean, between 0 and 1.
        variance_decay: Decay of the running moments behind sigma, between 0 and 1.
        overflow_sigmas: Standard deviations kept free below an overflow, above 0.
        backoff_factor: Multiplier between 0 and 1 for the step after an overflow.
        min_scale: Floor of the scale.
        max_scale: Cap of the scale.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of its range.

    Example:

    >>> rule = LogNormalLossScale()
    >>> state = rule.update(rule.init(), Verdict(finite=True, largest=0.25))
    >>> float(state.scale)  # 2 ** (16 - log2(0.25))
    262144.0
    """

    initial_scale: float = 2.0**15
    dtype: str = "float16"
    mean_decay: float = 0.99
    variance_decay: float = 0.999
    overflow_sigmas: float = 3.09
    backoff_factor: float = 0.5
    min_scale: float = 1.0
    max_scale: float = 2.0**24

    needs_largest = True

    def __post_init__(self) -> None:
        owner = "keras_mp.scaling.LogNormalLossScale"
        minimum, initial, maximum = base.checked_range(
            owner, self.min_scale, self.initial_scale, self.max_scale
        )
        base.checked_choice(owner, "dtype", self.dtype, tuple(LARGEST_EXPONENT))
        shares = {
            name: base.checked_number(owner, name, getattr(self, name), below=1.0)
            for name in ("mean_decay", "variance_decay", "backoff_factor")
        }
        self._store(
            min_scale=minimum,
            initial_scale=initial,
            max_scale=maximum,
            overflow_sigmas=base.checked_number(
                owner, "overflow_sigmas", self.overflow_sigmas
            ),
            **shares,
        )

    def init(self) -> LogNormalState:
        return LogNormalState(
            scale=np.float32(self.initial_scale),
            clean_steps=np.int64(0),
            mean=np.float32(0.0),
            mean_mass=np.float32(0.0),
            slow_mean=np.float32(0.0),
            slow_square=np.float32(0.0),
            slow_mass=np.float32(0.0),
        )

    def update(self, state: LogNormalState, verdict: base.Verdict) -> LogNormalState:
        largest = base.float32(verdict.largest)
        finite = ops.logical_and(
            ops.cast(verdict.finite, "bool"), ops.isfinite(largest)
        )
        largest = ops.where(finite, largest, base.float32(1.0))
        nonzero = ops.greater(largest, 0.0)
        seen = self._observe(state, self._log_largest(state, finite, nonzero, largest))
        scale = self._proposal(seen)
        scale = ops.where(
            finite, scale, ops.minimum(scale, state.scale * self.backoff_factor)
        )
        scale = ops.clip(scale, self.min_scale, self.max_scale)
        kept = [
            ops.where(nonzero, new, old)
            for new, old in zip(seen._replace(scale=scale), state, strict=True)
        ]
        clean_steps = ops.where(finite, state.clean_steps + 1, 0)
        return LogNormalState(*kept)._replace(clean_steps=clean_steps)

    def adopt(self, state: LogNormalState) -> LogNormalState:
        return state._replace(
            scale=base.clipped_scale(state.scale, self.min_scale, self.max_scale)
        )

    def _log_largest(
        self, state: LogNormalState, finite: Any, nonzero: Any, largest: Any
    ) -> Any:
        """Return this step's x; for an overflow, the least it can have been."""
        x = ops.log2(ops.where(nonzero, largest, base.float32(1.0)))
        least = LARGEST_EXPONENT[self.dtype] - ops.log2(state.scale)
        return ops.where(finite, x, least)

    def _observe(self, state: LogNormalState, x: Any) -> LogNormalState:
        """Return the state with x added to the running moments."""
        fast, slow = self.mean_decay, self.variance_decay
        return state._replace(
            mean=fast * state.mean + (1 - fast) * x,
            mean_mass=fast * state.mean_mass + (1 - fast),
            slow_mean=slow * state.slow_mean + (1 - slow) * x,
            slow_square=slow * state.slow_square + (1 - slow) * x * x,
            slow_mass=slow * state.slow_mass + (1 - slow),
        )

    def _proposal(self, state: LogNormalState) -> Any:
        """Return 2 ** (E - (mu + overflow_sigmas * sigma)), unclipped."""
        mu = state.mean / state.mean_mass
        slow_mu = state.slow_mean / state.slow_mass
        variance = state.slow_square / state.slow_mass - slow_mu * slow_mu
        sigma = ops.sqrt(ops.maximum(variance, 0.0))
        exponent = LARGEST_EXPONENT[self.dtype] - (mu + self.overflow_sigmas * sigma)
        # 2 ** 127 is the largest power of two in float32; the clip comes later.
        return ops.power(2.0, ops.minimum(exponent, 127.0))
