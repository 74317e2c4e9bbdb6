"""The one-call paths: compile a model, wrap an optimizer, load a model."""

import difflib
import os
import warnings
from typing import Any

import keras

from keras_mp import (
    conversion,
    distribute,
    guards,
    heads,
    inputs,
    policies,
    private,
    scaling,
)
from keras_mp.optimizer import LossScaleOptimizer, checked_inner
from keras_mp.protection import protect
from keras_mp.scaling import LossScale


def compile(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | str | dict = "adam",
    loss: Any = None,
    *,
    policy: keras.DTypePolicy | str | None = None,
    scaling: LossScale | str | None = None,
    **compile_kwargs: Any,
) -> None:
    """Compile ``model`` for mixed precision: ``model.compile`` with what is missing.

    If any layer computes in float16, the optimizer is wrapped in a
    `LossScaleOptimizer`; under bfloat16 and float32 only if ``scaling`` is given. A
    step that is skipped then changes nothing of the model: weights, optimizer
    variables, BatchNorm statistics and random seeds are what they were before it. The
    loss and the metrics of its batch count like those of any other, but for a metric
    that it would leave inf or NaN. A metric that no batch of an epoch leaves finite
    reads NaN. `fit` warns of a run that skips one step after another.

    Args:
        model: A Keras model, built or not.
        optimizer: A Keras optimizer, its name or its config. A
            `keras_mp.LossScaleOptimizer` is used as it is.
        loss: As for ``model.compile``.
        policy: None to leave the layers as they are, or a dtype policy, its name or
            ``"auto"``, under which to put all of them first, in place. A layer that is
            to stay in float32 needs a rule or an island, even if it was made with
            ``dtype="float32"``.
        scaling: None for dynamic loss scaling where it is needed, or a rule of
            `keras_mp.scaling` (or ``"dynamic"``, ``"log_normal"``) to use.
        **compile_kwargs: As for ``model.compile``.

    Raises:
        TypeError: ``model`` is no Keras model, or ``optimizer`` no optimizer.
        ValueError: ``optimizer`` is Keras's own `LossScaleOptimizer`; a rule is given
            together with an optimizer that has one; or the policy is unknown or does
            not fit the model's variables.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> keras_mp.compile(model, "adam", loss="mse", policy="mixed_float16")
    >>> model.optimizer.stats()["scale"]
    32768.0
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"keras_mp.compile(model, ...) needs a keras model. Got {model!r} of type "
            f"{type(model).__name__}."
        )
    distribute.check_scope(model, optimizer)
    rule = _checked_rule(scaling)
    with distribute.scope_of(model):
        optimizer = _checked_optimizer(optimizer, rule)
        if policy is not None:
            conversion.convert(model, policy)
        _make_safe(model)
        optimizer = _wrapped(model, optimizer, rule)
        # Keras would go by one policy name, and wrap in its own class.
        compile_kwargs["auto_scale_loss"] = False
        model.compile(optimizer=optimizer, loss=loss, **compile_kwargs)
        heads.settle(model)
    distribute.mend(model, optimizer)
    guards.fall_back(model)


def wrap_optimizer(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | str | dict,
    scaling: LossScale | str | None = None,
) -> keras.optimizers.Optimizer:
    """Return ``optimizer`` with loss scaling if ``model`` needs it, else itself.

    For models with several optimizers, such as GANs: wrap each one, and use its
    ``scale_loss`` in ``train_step``. If ``model`` is the model whose ``train_step``
    uses them, a step that any of them skips leaves its other variables unchanged.

    Args:
        model: The Keras model that the optimizer trains.
        optimizer: A Keras optimizer, its name or its config.
        scaling: None for dynamic scaling if a layer of ``model`` computes in float16;
            or a rule, which is used in any case.

    Returns:
        A `LossScaleOptimizer`, or the Keras optimizer where no scaling is needed.

    Raises:
        TypeError: ``optimizer`` is no optimizer.
        ValueError: ``optimizer`` is Keras's own `LossScaleOptimizer`, or has a rule
            and another is given.

    Example:

    >>> optimizer = keras_mp.wrap_optimizer(model, keras.optimizers.Adam(2e-4))
    """
    distribute.check_scope(model, optimizer)
    rule = _checked_rule(scaling)
    with distribute.scope_of(model):
        optimizer = _wrapped(model, _checked_optimizer(optimizer, rule), rule)
    distribute.mend(model, optimizer)
    return optimizer


def _wrapped(model, optimizer, rule):
    """Return ``optimizer`` with loss scaling, and ``model`` protected, if need be."""
    if not isinstance(optimizer, LossScaleOptimizer):
        if rule is None and not needs_loss_scaling(model):
            return optimizer
        optimizer = LossScaleOptimizer(optimizer, rule)
    protect(model, optimizer)
    return optimizer


def needs_loss_scaling(model: keras.Model) -> bool:
    """Return whether any layer of ``model`` computes in float16."""
    return any(
        layer.compute_dtype == "float16"
        for layer in private.walk(model)
        if not isinstance(layer, keras.layers.InputLayer)
    )


def load_model(path: str | os.PathLike, **kwargs: Any) -> keras.Model:
    """Load a ``.keras`` file as `keras.saving.load_model` does, ready to train on.

    Policies with their rules, float32 islands, the scaling rule, the scale and the
    counters come back with plain Keras too; what this adds is the protection of the
    model's state in skipped steps, which `keras_mp.compile` gave it, and rules on
    paths in models of your own class, whose layers are built before they are put
    together. A `keras.optimizers.LossScaleOptimizer` is replaced by ours, which goes on
    with its scale and with the inner optimizer's variables.

    Args:
        path: The file.
        **kwargs: Of `keras.saving.load_model`.

    Example:

    >>> model = keras_mp.load_model("model.keras")
    """
    model = keras.saving.load_model(path, **kwargs)
    _make_safe(model)
    if type(getattr(model, "optimizer", None)) is keras.optimizers.LossScaleOptimizer:
        _replace_keras_scaler(model)
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, LossScaleOptimizer):
        protect(model, optimizer)
    if optimizer is not None:
        distribute.mend(model, optimizer)
    return model


def _replace_keras_scaler(model):
    """Compile ``model`` as it was, with our optimizer in the place of Keras's."""
    old = model.optimizer
    new = LossScaleOptimizer(
        old.inner_optimizer,
        initial_scale=old.initial_scale,
        dynamic_growth_steps=old.dynamic_growth_steps,
        name=old.name,
    )
    store = {}
    old.save_own_variables(store)
    new.load_own_variables(store)
    arguments = keras.saving.deserialize_keras_object(model.get_compile_config())
    arguments |= {"optimizer": new, "auto_scale_loss": False}
    model.compile(**arguments)


def _make_safe(model):
    """Have the layers of ``model`` obey rules and lists, and it return float32.

    What no layer can make safe, data beyond 16 bits, it is to warn of.
    """
    policies.resolve_rules(model)
    _report_unmatched_rules(model)
    if policies.is_low_anywhere(model):
        guards.guard_steps(model)
        inputs.watch(model)


def _checked_rule(rule):
    return None if rule is None else scaling.get(rule)


def _checked_optimizer(optimizer, rule):
    """Return the Keras optimizer that was meant, if it can have ``rule``."""
    if not isinstance(optimizer, LossScaleOptimizer):
        return checked_inner(optimizer)
    if rule is not None and rule != optimizer.scaling:
        raise ValueError(
            f"scaling={rule!r} was given for optimizer '{optimizer.name}', which has "
            f"the rule {optimizer.scaling!r} already. Give the rule in one place."
        )
    return optimizer


def _report_unmatched_rules(model):
    """Warn about the rules of any policy in ``model`` that match none of its layers."""
    for rule, suggestion in unmatched_rules(model):
        warnings.warn(
            f"Policy rule '{rule}' matches no layer of model '{model.name}', so "
            f"it keeps nothing in float32. {suggestion}",
            stacklevel=4,
        )


def unmatched_rules(model):
    """Yield each rule of a policy in ``model`` that matches no layer; and a remedy."""
    held = [layer.dtype_policy for layer in private.walk(model)]
    for policy in {policy for policy in held if isinstance(policy, policies.Policy)}:
        for rule in conversion.unmatched_rules(model, policy):
            shown = rule if isinstance(rule, str) else rule.__name__
            yield shown, _suggestion(model, shown)


def _suggestion(model, rule):
    names = [layer.name for layer in private.walk(model)]
    close = difflib.get_close_matches(rule.split("/")[-1], names, n=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    if not model.built:
        return "The model is not built yet; layers it creates later are not seen."
    return f"Its layers are: {', '.join(names)}."
