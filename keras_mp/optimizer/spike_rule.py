"""When a step is a spike: its loss or gradient norm lies far above the last ones."""

import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mp.saving import register
from keras_mp.scaling import base

#: The part of a mean that its rounding in float32 may come to, for any window.
_ROUNDING = 1e-6


class SpikeState(NamedTuple):
    """State of `SpikeRule`.

    Attributes:
        history: float32 of shape (2, window): losses and gradient norms of the last
            steps that were applied, each step in the place of the oldest.
        recorded: int scalar, steps that went into ``history``.
        in_a_row: int scalar, the current run of spikes.
    """

    history: Any
    recorded: Any
    in_a_row: Any


@register
@dataclasses.dataclass(frozen=True)
class SpikeRule:
    """Skip a step whose loss or gradient norm is a spike.

    For ``keras_mp.compile(..., skip_spikes=...)``. A step is a spike if its loss or the
    norm of its gradients lies more than ``deviations`` standard deviations above the
    mean over the last ``window`` steps that were applied. It is skipped like one that
    overflows, but the loss scale stays what it is. Until ``window`` steps were applied
    nothing is skipped. Steps that were skipped, and losses or norms that are not
    finite, do not enter the mean.

    So a level that rises for good would be skipped for ever. After ``patience`` spikes
    in a row the window is emptied, and the next ``window`` steps are applied.

    The source is `skip_step_on_spikes` of MaxText, which follows the SkipStepOptimizer
    of OLMo-core (OLMo 2, arXiv:2501.00656): the same comparison, with the same unbiased
    deviation, on the same default window. They begin at half a window, and let spikes
    enter it, so that a few in a row become the new level.

    Args:
        deviations: A finite number above 0.
        window: Number of steps, 2 or more.
        patience: Number of spikes in a row, 1 or more.

    Raises:
        TypeError: An argument is not a number, or not a whole one.
        ValueError: An argument is out of its range.

    Example:

    >>> optimizer = keras_mp.LossScaleOptimizer(
    ...     "adam", skip_spikes=keras_mp.SpikeRule(deviations=4.0, window=64)
    ... )
    >>> optimizer.stats()["spikes"]
    0
    """

    deviations: float = 6.0
    window: int = 128
    patience: int = 10

    def __post_init__(self) -> None:
        owner = "keras_mp.SpikeRule"
        checked = {
            "deviations": base.checked_number(owner, "deviations", self.deviations),
            "window": base.checked_count(owner, "window", self.window),
            "patience": base.checked_count(owner, "patience", self.patience),
        }
        if checked["window"] < 2:
            raise ValueError(
                f"{owner}(window={self.window!r}): `window` must be 2 or more, because "
                "one step has no deviation. The default is 128."
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def init(self) -> SpikeState:
        """Return the state before the first step, of NumPy arrays."""
        history = np.zeros((2, self.window), "float32")
        return SpikeState(history, np.int32(0), np.int32(0))

    def is_spike(self, state: SpikeState, values: Any) -> Any:
        """Return whether a step is a spike, as a scalar bool tensor.

        Args:
            state: The state before the step.
            values: float32 tensor of shape (2,): the loss, or NaN if it is not known,
                and the norm of the gradients.
        """
        mean = ops.mean(state.history, axis=1)
        squares = ops.square(state.history - ops.expand_dims(mean, 1))
        deviation = ops.sqrt(ops.sum(squares, axis=1) / (self.window - 1))
        limit = self.deviations * deviation + _ROUNDING * ops.absolute(mean)
        above = ops.any(ops.greater(values - mean, limit))  # false for NaN
        return ops.logical_and(above, ops.greater_equal(state.recorded, self.window))

    def update(
        self, state: SpikeState, values: Any, enters: Any, spike: Any
    ) -> SpikeState:
        """Return the state after a step.

        Args:
            state: The state before the step.
            values: As for `is_spike`.
            enters: Scalar bool tensor: whether the step is applied, and its values
                are finite.
            spike: Scalar bool tensor: whether the step is skipped as a spike.
        """
        place = ops.equal(ops.arange(self.window), ops.mod(state.recorded, self.window))
        history = ops.where(
            ops.logical_and(place, enters), ops.expand_dims(values, 1), state.history
        )
        recorded = state.recorded + ops.cast(enters, "int32")
        in_a_row = ops.where(
            spike, state.in_a_row + 1, ops.where(enters, 0, state.in_a_row)
        )
        has_shifted = ops.greater_equal(in_a_row, self.patience)
        return SpikeState(
            history,
            ops.where(has_shifted, 0, recorded),
            ops.where(has_shifted, 0, in_a_row),
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as a new, JSON-serialisable dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SpikeRule":
        """Build a rule from `get_config`'s dict."""
        return cls(**config)


def checked_spike_rule(owner: str, skip_spikes: Any) -> SpikeRule | None:
    """Return the rule that ``skip_spikes`` asks for, or None.

    Args:
        owner: Name of the call, for the message.
        skip_spikes: None or False; True for the defaults; a `SpikeRule`; or what
            Keras serialises it to.
    """
    if skip_spikes is None or skip_spikes is False:
        return None
    if skip_spikes is True:
        return SpikeRule()
    if isinstance(skip_spikes, dict):
        skip_spikes = keras.saving.deserialize_keras_object(skip_spikes)
    if not isinstance(skip_spikes, SpikeRule):
        raise TypeError(
            f"{owner}(skip_spikes={skip_spikes!r}): it must be None, True, or a "
            "keras_mp.SpikeRule, such as keras_mp.SpikeRule(deviations=6.0). "
            f"Got a {type(skip_spikes).__name__}."
        )
    return skip_spikes
