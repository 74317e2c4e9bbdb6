"""Checks of the arguments of `LossScaleOptimizer`."""

import numbers
from typing import Any

import keras

from keras_mp import dtypes, scaling
from keras_mp.scaling.base import checked_choice

_ON_SKIP = ("hold", "advance")


def checked_inner(inner_optimizer: Any) -> keras.optimizers.Optimizer:
    """Return the optimizer that was named, configured or passed."""
    name_or_config: Any = str | dict
    if isinstance(inner_optimizer, name_or_config) and inner_optimizer != {}:
        inner_optimizer = keras.optimizers.get(inner_optimizer)
    if isinstance(inner_optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "LossScaleOptimizer(inner_optimizer=...): the optimizer "
            f"'{inner_optimizer.name}' is a {type(inner_optimizer).__name__} already, "
            "and the loss would be scaled twice. Pass its `.inner_optimizer`."
        )
    if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "LossScaleOptimizer(inner_optimizer=...) needs a keras optimizer, its "
            f"name or its config. Got {inner_optimizer!r} of type "
            f"{type(inner_optimizer).__name__}. Pass for example 'adam'."
        )
    return inner_optimizer


def checked_all_reduce_dtype(dtype: str | None) -> str | None:
    """Return ``dtype`` if gradients can be summed over the replicas in it."""
    is_low = isinstance(dtype, str) and dtype in dtypes.LOW_PRECISION
    if dtype is not None and not is_low:
        raise ValueError(
            f"LossScaleOptimizer(all_reduce_dtype={dtype!r}): it must be None, "
            "'float16' or 'bfloat16'. None sums gradients in their own dtype."
        )
    return dtype


def checked_on_skip(owner: str, on_skip: str) -> str:
    """Return ``on_skip`` if it says what a skipped step does to a schedule."""
    return checked_choice(owner, "on_skip", on_skip, _ON_SKIP)


def rule_of(
    rule: Any, initial_scale: float | None, growth_steps: int | None
) -> scaling.LossScale:
    """Return the rule that the constructor's arguments ask for."""
    if _is_number(rule):
        rule, initial_scale = None, rule if initial_scale is None else initial_scale
    if rule is None:
        return _dynamic_rule(initial_scale, growth_steps)
    if initial_scale is not None or growth_steps is not None:
        raise ValueError(
            f"LossScaleOptimizer(scaling={rule!r}, initial_scale={initial_scale!r}, "
            f"dynamic_growth_steps={growth_steps!r}): pass either a rule or Keras's "
            "two arguments. A rule takes them as `initial_scale` and "
            "`growth_interval`."
        )
    return scaling.get(rule)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _dynamic_rule(
    initial_scale: float | None, growth_steps: int | None
) -> scaling.DynamicLossScale:
    """Return the default rule with Keras's two settings.

    Keras has no range of scales: a first scale outside of ours extends the range.
    """
    settings: dict[str, Any] = {}
    if growth_steps is not None:
        settings["growth_interval"] = growth_steps
    if initial_scale is not None:
        rule = scaling.DynamicLossScale
        usable = scaling.StaticLossScale(initial_scale).scale
        settings["initial_scale"] = usable
        settings["min_scale"] = min(usable, rule.min_scale)
        settings["max_scale"] = max(usable, rule.max_scale)
    return scaling.DynamicLossScale(**settings)
