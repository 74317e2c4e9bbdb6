"""Static loss scaling: one scale for the whole run; overflows are still skipped."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_mp.saving import register
from keras_mp.scaling import base


class StaticState(NamedTuple):
    """State of `StaticLossScale`.

    Attributes:
        scale: float32 scalar, always the configured scale.
        clean_steps: int scalar, finite steps since the last overflow.
    """

    scale: Any
    clean_steps: Any


@register
@dataclasses.dataclass(frozen=True)
class StaticLossScale(base.LossScale):
    """Keep one scale for the whole run.

    Unlike a ``loss_scale_factor`` on a Keras optimizer, a step whose gradients
    overflow is still skipped and counted. A scale of 1 is a check without a scale: no
    loss is multiplied and no gradient is divided. It is what `keras_mp.compile` gives
    models in bfloat16, whose gradients need no scale.

    Args:
        scale: A finite number above 0. Powers of two lose no bits.

    Raises:
        TypeError: ``scale`` is not a number.
        ValueError: ``scale`` is not finite and above 0.

    Example:

    >>> rule = StaticLossScale(128.0)
    >>> float(rule.update(rule.init(), Verdict(finite=False)).scale)
    128.0
    """

    scale: float

    def __post_init__(self) -> None:
        owner = "keras_mp.scaling.StaticLossScale"
        self._store(scale=base.checked_scale(owner, "scale", self.scale))

    @property
    def initial_scale(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The scale, under the name the other rules use."""
        return self.scale

    @property
    def only_checks(self) -> bool:
        return self.scale == 1.0

    def init(self) -> StaticState:
        return StaticState(scale=np.float32(self.scale), clean_steps=np.int64(0))

    def update(self, state: StaticState, verdict: base.Verdict) -> StaticState:
        finite = ops.cast(verdict.finite, "bool")
        return state._replace(clean_steps=ops.where(finite, state.clean_steps + 1, 0))

    def adopt(self, state: StaticState) -> StaticState:
        return state._replace(scale=self.scale)
