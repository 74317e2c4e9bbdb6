"""A case: one object of Keras, how to build and call it, and on which inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

#: Inputs that stay as they are; all others are rounded to the compute dtype first, so
#: that both precisions get the same. In these the rounding is the fault looked for.
UNROUNDED = ("ids", "unscaled")

#: The largest magnitude of stress, close to float16's largest number, 65504.
LARGE = 3e4

#: The length of stress: where float16 can no longer count, and a mean underflows.
LONG = 65536


class Given:
    """The arguments of one call.

    Floats in ``args`` are rounded and differentiated, except at the positions that the
    case calls fixed; everything else passes as it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


#: Makes the arguments of a call from a random generator.
Scenario = Callable[[np.random.Generator], Given]


@dataclasses.dataclass
class Subject:
    """What a case builds: something to call, and the layer whose weights it uses."""

    call: Callable
    owner: keras.layers.Layer | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One object of Keras and how it is put to the test.

    Attributes:
        kind: ``"layers"``, ``"activations"``, ``"losses"`` or ``"metrics"``.
        name: The public name that the case covers.
        build: Builds it, given one of `modes.MODES`, under the policy of the moment.
        scenarios: The inputs by name.
        variant: What sets it apart from other cases of the same name.
        fixed: Positions of arguments that are neither rounded nor differentiated:
            labels.
        low_inputs: Whether floats arrive in the compute dtype, as from a layer before.
        differentiable: Whether there are gradients to compare.
        random: Why values cannot be compared, so that only finiteness is; or "".
        unstable: Scenarios of which only finiteness is compared too, because less than
            a unit in the last place of what is inside decides the result.
    """

    kind: str
    name: str
    build: Callable[[Any], Subject]
    scenarios: Mapping[str, Scenario]
    variant: str = ""
    fixed: tuple[int, ...] = ()
    low_inputs: bool = False
    differentiable: bool = True
    random: str = ""
    unstable: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name and variant.

        >>> Case("layers", "Dense", None, {}, variant="softmax").title
        'Dense: softmax'
        """
        return f"{self.name}: {self.variant}" if self.variant else self.name


def normal(shape: tuple[int, ...], scale: float = 1.0) -> Scenario:
    """Normally distributed inputs."""
    return lambda random: Given(scale * random.standard_normal(shape))


def large(shape: tuple[int, ...]) -> Scenario:
    """Inputs that fill the range up to `LARGE`."""
    return lambda random: Given(random.uniform(-LARGE, LARGE, shape))


def logits(shape: tuple[int, ...]) -> Scenario:
    """Inputs at both ends of the range and at 0, so that there are ties."""
    return lambda random: Given(random.choice([-LARGE, 0.0, LARGE], shape))


def floats(
    shape: tuple[int, ...], long: tuple[int, ...] | None = None
) -> dict[str, Scenario]:
    """The scenarios of one tensor of floats.

    Args:
        shape: Its shape.
        long: The shape with an axis of `LONG`, for what reduces along it.
    """
    scenarios = {
        "ordinary": normal(shape),
        "small": normal(shape, 1e-4),
        "large": large(shape),
    }
    if long is not None:
        scenarios["long"] = normal(long)
    return scenarios


def several(scenarios: Mapping[str, Scenario], count: int) -> dict[str, Scenario]:
    """The same scenarios for a list of ``count`` tensors."""

    def of_one(scenario):
        return lambda random: Given([scenario(random).args[0] for _ in range(count)])

    return {name: of_one(scenario) for name, scenario in scenarios.items()}


def masked(shape: tuple[int, ...], **kwargs: Any) -> Scenario:
    """Inputs of which the first row is masked in part and the last in full."""

    def make(random):
        mask = np.ones(shape[:2], bool)
        mask[0, shape[1] // 2 :] = False
        mask[-1] = False
        return Given(random.standard_normal(shape), mask=mask, **kwargs)

    return make


def calling(scenarios: Mapping[str, Scenario], **kwargs: Any) -> dict[str, Scenario]:
    """The same scenarios with more keyword arguments."""

    def with_kwargs(scenario):
        def make(random):
            given = scenario(random)
            return Given(*given.args, **given.kwargs, **kwargs)

        return make

    return {name: with_kwargs(scenario) for name, scenario in scenarios.items()}
