"""The base of the loss-scale rules: a frozen config with pure functions over a state.

A rule holds only its hyperparameters. Its state is a ``NamedTuple`` of scalars that
the caller keeps (as Python numbers, arrays or variables), so the same rule serves an
eager loop, a compiled graph and a stateless backend. Rules compute with ``keras.ops``
only.
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from keras import ops

Choice = TypeVar("Choice", bound=str)


class Verdict(NamedTuple):
    """What a rule is told of one step's gradients, aggregated over replicas.

    Attributes:
        finite: Scalar bool. True if no gradient holds an inf or a NaN.
        largest: Scalar float32, the largest absolute *unscaled* gradient; None for
            rules whose ``needs_largest`` is False.
    """

    finite: Any
    largest: Any = None


class LossScale:
    """Base of the loss-scale rules.

    A subclass is a frozen dataclass that implements `init` and `update`. Its state
    starts with the fields ``scale`` (float32) and ``clean_steps`` (int: finite steps
    since the last overflow or growth); those two are what Keras's own optimizer
    stores, and what makes checkpoints interchangeable. The rule also tells its
    ``initial_scale``, by a field or a property.

    All methods are pure: they change nothing, and do not synchronise with the device.
    """

    #: The scale of the first step.
    initial_scale: float

    #: True if `update` reads ``verdict.largest``.
    needs_largest: ClassVar[bool] = False

    @property
    def only_checks(self) -> bool:
        """Whether the scale is always 1: gradients are checked, and nothing is scaled.

        The optimizer then multiplies no loss and divides no gradient, and does not care
        whether a loop calls ``scale_loss``.
        """
        return False

    def init(self) -> Any:
        """Return the state before the first step: a ``NamedTuple`` of NumPy scalars."""
        raise NotImplementedError

    def update(self, state: Any, verdict: Verdict) -> Any:
        """Return the state after a step.

        Args:
            state: This rule's state before the step; every field a scalar (a number,
                an array, a tensor or a variable).
            verdict: `Verdict` on the step's gradients.

        Returns:
            A new state, of tensors: the scale in float32, counts as integers.
        """
        raise NotImplementedError

    def adopt(self, state: Any) -> Any:
        """Return ``state``, read from a checkpoint, with a scale that this rule allows.

        Args:
            state: This rule's state as Python numbers; its scale may come from
                another rule and may be 0, inf or NaN.

        Returns:
            A new state of Python numbers, its scale within this rule's range.
        """
        raise NotImplementedError

    def exhausted(self, state: Any, verdict: Verdict) -> Any:
        """Return whether training should stop because the scale can fall no further.

        Args:
            state: This rule's state *before* the step.
            verdict: `Verdict` on the step's gradients.

        Returns:
            A scalar bool tensor; or the constant False for a rule that never stops
            training, so that its step gets no operation for this.
        """
        return False

    def get_config(self) -> dict[str, Any]:
        """Return the hyperparameters as a new, JSON-serialisable dict."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LossScale":
        """Build a rule from `get_config`'s dict, which is left unchanged."""
        return cls(**config)

    def _store(self, **values: Any) -> None:
        """Set fields of the frozen dataclass during ``__post_init__``."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def checked_number(
    owner: str,
    name: str,
    value: Any,
    *,
    above: float = 0.0,
    below: float = math.inf,
    needs: str | None = None,
) -> float:
    """Return ``value`` as a float if it lies strictly between two bounds.

    Args:
        owner: Name of the call, for the message.
        name: Name of the argument.
        value: What was passed.
        above: Exclusive lower bound.
        below: Exclusive upper bound.
        needs: What the message says the argument must be; by default the two bounds.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: ``value`` is NaN or outside the bounds.
    """
    needs = needs or (
        f"a finite number above {above:g}"
        if below == math.inf
        else f"a number above {above:g} and below {below:g}"
    )
    message = f"{owner}({name}={value!r}): `{name}` must be {needs}."
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{message} Got a {type(value).__name__}.")
    if not above < value < below:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(message)
    return float(value)


def checked_count(owner: str, name: str, value: Any) -> int:
    """Return ``value`` as an int if it is a whole number of at least 1.

    The largest is what 64 bits hold.
    """
    message = f"{owner}({name}={value!r}): `{name}` must be a whole number, 1 or more."
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{message} Got a {type(value).__name__}.")
    if value < 1:
        raise ValueError(message)
    if int(value) > sys.maxsize:
        raise ValueError(f"{message} The largest is {sys.maxsize}.")
    return int(value)


def checked_choice(
    owner: str, name: str, value: Choice, choices: Sequence[Choice]
) -> Choice:
    """Return ``value`` if it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        options = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{owner}({name}={value!r}): `{name}` must be {options}.")
    return value


def checked_scale(owner: str, name: str, value: Any) -> float:
    """Return ``value`` as a float if it can be a scale, which is kept in float32."""
    return checked_number(
        owner,
        name,
        value,
        above=math.nextafter(2.0**-126, 0.0),
        below=math.nextafter(2.0**127, math.inf),
        needs="a finite number above 0 that float32 holds, from 2**-126 to 2**127",
    )


def checked_range(
    owner: str, minimum: Any, initial: Any, maximum: Any
) -> tuple[float, float, float]:
    """Return the three scales as floats if minimum <= initial <= maximum."""
    minimum = checked_scale(owner, "min_scale", minimum)
    initial = checked_scale(owner, "initial_scale", initial)
    maximum = checked_scale(owner, "max_scale", maximum)
    if not minimum <= initial <= maximum:
        raise ValueError(
            f"{owner}(min_scale={minimum!r}, initial_scale={initial!r}, "
            f"max_scale={maximum!r}): these must satisfy min_scale <= initial_scale "
            "<= max_scale. Lower `min_scale` or raise `max_scale`."
        )
    return minimum, initial, maximum


def clipped_scale(scale: Any, minimum: float, maximum: float) -> float:
    """Return a checkpoint's scale moved into a range; NaN becomes the minimum."""
    scale = float(scale)
    return minimum if math.isnan(scale) else min(max(scale, minimum), maximum)


def float32(value: Any) -> Any:
    """Return ``value`` as a float32 tensor, whatever Keras's ``floatx`` is."""
    return ops.cast(ops.convert_to_tensor(value, dtype="float32"), "float32")
