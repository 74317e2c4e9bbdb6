"""The optimizer that a model needs: scaled, guarded, or as it is."""

from collections.abc import Collection, Iterable
from typing import Any

import keras

from keras_mp import arguments, distribute, dtypes, private, resuming, scaling
from keras_mp.optimizer import (
    LossScaleOptimizer,
    SpikeRule,
    checked_inner,
    checked_on_skip,
    checked_spike_rule,
)
from keras_mp.protection import protect
from keras_mp.scaling import LossScale
from keras_mp.speed import execution


def is_optimizer(value: Any) -> bool:
    """Return whether ``value`` is a Keras optimizer."""
    return isinstance(value, keras.optimizers.Optimizer)


def optimizers_in(args: Iterable[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the Keras optimizers among arguments, as a list."""
    return list(filter(is_optimizer, [*args, *kwargs.values()]))


def checked_settings(
    owner: str, skip_spikes: SpikeRule | bool | None, on_skip: str | None
) -> dict[str, Any]:
    """Return what was given of the settings of a `LossScaleOptimizer`, by name."""
    spikes = checked_spike_rule(owner, skip_spikes)
    settings: dict[str, Any] = {} if spikes is None else {"skip_spikes": spikes}
    if on_skip is not None:
        settings["on_skip"] = checked_on_skip(owner, on_skip)
    return settings


def replace_keras_scaler(
    model: keras.Model, rule: LossScale | None = None, **settings: Any
) -> None:
    """Replace Keras's `LossScaleOptimizer` of ``model`` by ours.

    Ours takes over its scale and counters, unless there is a ``rule``.
    """
    old = model.optimizer
    own = {"name": old.name, **settings}
    if rule is not None:
        new = LossScaleOptimizer(old.inner_optimizer, rule, **own)
    else:
        new = LossScaleOptimizer(
            old.inner_optimizer,
            initial_scale=old.initial_scale,
            dynamic_growth_steps=old.dynamic_growth_steps,
            **own,
        )
        if old.built:
            store = {}
            old.save_own_variables(store)
            new.load_own_variables(store)
    private.trainer.exchange_optimizer(model, old, new)
    protect(model, new)


def wrap_optimizer(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | str | dict[str, Any],
    scaling: LossScale | str | None = None,
    *,
    skip_spikes: SpikeRule | bool | None = None,
    on_skip: str | None = None,
) -> keras.optimizers.Optimizer:
    """Return ``optimizer`` with what `compile` would wrap it in, else itself.

    For models with several optimizers, such as GANs: wrap each one, and use its
    ``scale_loss`` in ``train_step``, which bfloat16 can do without. If the
    ``train_step`` of ``model`` uses them, a step that any of them skips leaves all
    other variables of ``model`` unchanged. Does not synchronise with the device.

    Args:
        model: The Keras model that the optimizer trains.
        optimizer: A Keras optimizer, its name or its config.
        scaling: None for dynamic scaling if a layer of ``model`` computes in float16,
            and a check without a scale if one computes in bfloat16; or a rule of
            `keras_mp.scaling` or its name, which is used in any case.
        skip_spikes: As for `compile`.
        on_skip: As for `compile`.

    Returns:
        A `LossScaleOptimizer`, or the Keras optimizer if ``model`` is in float32 and no
        rule is given.

    Raises:
        TypeError: ``model`` is not a Keras model, ``optimizer`` is not an optimizer, or
            ``skip_spikes`` neither a bool nor a rule.
        ValueError: ``optimizer`` is Keras's own `LossScaleOptimizer`, or has a rule
            and another is given; or ``on_skip`` is another word.

    Example:

    >>> optimizer = keras_mp.wrap_optimizer(model, keras.optimizers.Adam(2e-4))
    """
    arguments.check_model("keras_mp.wrap_optimizer(model, ...)", model)
    distribute.check_scope(model, optimizer)
    rule = checked_rule(scaling)
    settings = checked_settings("keras_mp.wrap_optimizer", skip_spikes, on_skip)
    with distribute.scope_of(model):
        optimizer = checked_optimizer(optimizer, rule, settings)
        optimizer = wrapped(model, optimizer, rule, settings)
    distribute.prepare_steps(model, optimizer)
    execution.speed_up(model)
    resuming.attach(model)
    return optimizer


def wrapped(
    model: keras.Model,
    value: Any,
    rule: LossScale | None,
    settings: dict[str, Any],
    guard: bool | None = None,
) -> Any:
    """Return ``value``, an optimizer guarded if needed, and ``model`` protected.

    Args:
        model: As of `wrap_optimizer`.
        value: A Keras optimizer, or anything else, which is returned.
        rule: A rule, or None for the one that the model needs.
        settings: As `checked_settings` returns them.
        guard: As of `compile`.
    """
    if not is_optimizer(value):
        return value
    if isinstance(value, LossScaleOptimizer):
        value = _with_scale(model, value, rule)
    else:
        guard = True if "skip_spikes" in settings else guard
        rule = rule or _needed_rule(model, value, guard)
        if rule is None:
            return value
        value = LossScaleOptimizer(value, rule, **settings)
    protect(model, value)
    return value


def _with_scale(model, optimizer, rule):
    """Return ``optimizer``; if it only checks, with the rule that ``model`` needs."""
    if rule is None and needs_loss_scaling(model):
        rule = scaling.DynamicLossScale()
    if not optimizer.scaling.only_checks or rule in (None, optimizer.scaling):
        return optimizer
    return with_rule(optimizer, rule)


def with_rule(optimizer: LossScaleOptimizer, rule: LossScale) -> LossScaleOptimizer:
    """Return one like ``optimizer`` around the same inner one, with another rule."""
    rules = ("scaling", "initial_scale", "dynamic_growth_steps")
    config = {k: v for k, v in optimizer.get_config().items() if k not in rules}
    inner = {"inner_optimizer": optimizer.inner_optimizer, "scaling": rule}
    return type(optimizer)(**config | inner)


def _needed_rule(model, optimizer, guard):
    """Return the rule that a Keras optimizer needs to train ``model``, or None.

    Without float16 it is a fixed scale: the one that the optimizer has, or 1.
    """
    if guard is False:
        return None
    if needs_loss_scaling(model):
        return scaling.DynamicLossScale()
    if guard or computes_in(model, dtypes.LOW_PRECISION):
        return scaling.StaticLossScale(optimizer.loss_scale_factor or 1.0)
    return None


def needs_loss_scaling(model: keras.Model) -> bool:
    """Return whether any layer of ``model`` computes in float16."""
    return computes_in(model, ("float16",))


def computes_in(model: keras.Model, names: Collection[str]) -> bool:
    """Return whether any layer of ``model`` computes in one of the dtypes ``names``."""
    return any(
        layer.compute_dtype in names
        for layer in private.layers.walk(model)
        if not isinstance(layer, keras.layers.InputLayer)
    )


def checked_rule(rule: LossScale | str | None) -> LossScale | None:
    """Return the rule that was given or named, or None."""
    return None if rule is None else scaling.get(rule)


def checked_optimizer(
    optimizer: Any, rule: LossScale | None, settings: dict[str, Any]
) -> keras.optimizers.Optimizer:
    """Return the Keras optimizer that was meant, if it can have rule and settings."""
    if not isinstance(optimizer, LossScaleOptimizer):
        return checked_inner(optimizer)
    own = optimizer.scaling
    if rule is not None and rule != own and not own.only_checks:
        raise ValueError(
            f"scaling={rule!r} was given for optimizer '{optimizer.name}', which has "
            f"the rule {own!r} already. Give the rule in one place."
        )
    for name, value in settings.items():
        if value != getattr(optimizer, name):
            raise ValueError(
                f"{name}={value!r} was given for optimizer '{optimizer.name}', a "
                f"LossScaleOptimizer that has {name}={getattr(optimizer, name)!r}. "
                "Give it to LossScaleOptimizer, or pass its `.inner_optimizer`."
            )
    return optimizer
