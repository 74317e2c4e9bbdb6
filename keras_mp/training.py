"""The one-call paths: compile a model, wrap an optimizer."""

import functools
import inspect
import itertools
import warnings
from typing import Any

import keras

from keras_mp import (
    calibration,
    conversion,
    distribute,
    dtypes,
    guards,
    heads,
    input_warnings,
    policies,
    private,
    scaling,
)
from keras_mp.optimizer import (
    LossScaleOptimizer,
    SpikeRule,
    checked_inner,
    checked_spike_rule,
)
from keras_mp.protection import protect
from keras_mp.scaling import LossScale
from keras_mp.speed import execution


def compile(
    model: keras.Model,
    *args: Any,
    policy: keras.DTypePolicy | str | None = None,
    scaling: LossScale | str | None = None,
    guard: bool | None = None,
    skip_spikes: SpikeRule | bool | None = None,
    **kwargs: Any,
) -> None:
    """Compile ``model`` for mixed precision: ``model.compile`` with what is missing.

    If any layer computes in 16 bits, the optimizer is wrapped in a
    `LossScaleOptimizer`, which skips a step whose gradients are not finite. In float16
    it scales the loss; in bfloat16, whose gradients need no scale, it only checks. A
    skipped step changes nothing in the model: weights, optimizer variables, BatchNorm
    statistics and random seeds stay what they were before it. The loss and the metrics
    of its batch count as usual, except for a metric that would become inf or NaN. A
    metric that is not finite after any batch of an epoch shows NaN. ``fit`` warns if
    every step is skipped.

    Layers that are not safe in 16 bits compute in float32, or get guards (see
    `keras_mp.Policy`), and the model returns float32 to losses, metrics and
    ``predict``. Does not synchronise with the device.

    Args:
        model: A Keras model, built or not.
        *args: Arguments of ``model.compile``, also of a ``compile`` of the model's own
            class: ``optimizer`` and ``loss`` first, as in Keras. Arguments that are not
            given are not passed on, so that the defaults of that ``compile`` hold;
            Keras's own gets ``"adam"``. Each Keras optimizer among the arguments is
            wrapped, and so is one that ``compile`` chooses itself. A
            `keras_mp.LossScaleOptimizer` is used as it is; only one that scales
            nothing, as models in bfloat16 have, gets the rule that is given or that
            float16 needs.
        policy: None to leave the layers as they are; or a dtype policy, its name or
            ``"auto"``: all layers are put under it first, in place. A layer that has to
            stay in float32 needs a rule or an island, even if it was made with
            ``dtype="float32"``.
        scaling: None for dynamic loss scaling where it is needed; or a rule of
            `keras_mp.scaling`, or ``"dynamic"`` or ``"log_normal"``. ``"calibrate"`` is
            dynamic scaling, or the rule that the optimizer has, whose first scale is
            measured on the first batch of ``fit`` (`keras_mp.calibrate_scale`).
        guard: None to guard a model with a layer in 16 bits; True to guard it in
            float32 too; False to leave the optimizer as it is, which float16 does not
            allow. If the ``compile`` of the model's own class has an argument of this
            name, that one gets what is given here, and ours is None.
        skip_spikes: None; or True to skip, besides what is not finite, a step whose
            loss or gradient norm lies more than 6 standard deviations above the mean of
            the last 128; or a `keras_mp.SpikeRule` with other numbers. The optimizer is
            then wrapped in float32 too.
        **kwargs: Keyword arguments of ``model.compile``.

    Raises:
        TypeError: ``model`` is not a Keras model, ``optimizer`` is not an optimizer, or
            ``model.compile`` does not take the arguments; or ``guard`` is no bool, or
            ``skip_spikes`` neither a bool nor a rule.
        ValueError: ``optimizer`` is Keras's own `LossScaleOptimizer`; a rule is given
            together with an optimizer that has another, or with ``guard=False``;
            ``guard=False`` is given for float16; there is no scale to calibrate; the
            policy is unknown; or the policy does not fit the model's variables.

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
    calibrates = scaling == "calibrate"
    given = None if calibrates else _checked_rule(scaling)
    rule = _checked_rule("dynamic") if calibrates else given
    if _has_own_guard(model):
        kwargs, guard = kwargs | ({} if guard is None else {"guard": guard}), None
    spikes = checked_spike_rule("keras_mp.compile", skip_spikes)
    _check_guard(model, policy, rule, guard, spikes)
    wrapped = functools.partial(_wrapped, model, rule=rule, guard=guard, spikes=spikes)
    for optimizer in (None, *_optimizers(args, kwargs)):
        distribute.check_scope(model, optimizer)
    with distribute.scope_of(model):
        args, kwargs = _checked_arguments(model, args, kwargs, given, spikes)
        if policy is not None:
            conversion.convert(model, policy)
        make_safe(model)
        args = tuple(map(wrapped, args))
        kwargs = {name: wrapped(value) for name, value in kwargs.items()}
        model.compile(*args, **kwargs)
        optimizers = _optimizers(args, kwargs) or _chosen(model, rule, spikes, wrapped)
        heads.keep_in_float32(model)
    for optimizer in optimizers:
        distribute.prepare_steps(model, optimizer)
    execution.run_in_graph(model)
    guards.fall_back(model)
    if calibrates:
        calibration.calibrate_first_step(model)


def _is_optimizer(value):
    return isinstance(value, keras.optimizers.Optimizer)


def _optimizers(args, kwargs):
    """Return the Keras optimizers among arguments, as a list."""
    return list(filter(_is_optimizer, [*args, *kwargs.values()]))


def _checked_arguments(model, args, kwargs, rule, spikes):
    """Return the arguments for ``model.compile``, with optimizers instead of names.

    Raises:
        TypeError: ``model.compile`` does not take it.
    """
    signature = inspect.signature(model.compile)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"keras_mp.compile(model, ...) takes what `{type(model).__name__}.compile` "
            f"takes, which is {signature}. Got something else: {error}."
        ) from None
    own = type(model).compile is not keras.Model.compile
    if not (own or args or "optimizer" in kwargs):
        kwargs = {"optimizer": "adam", **kwargs}

    def checked(name, value):
        if value is None or not (name == "optimizer" or _is_optimizer(value)):
            return value
        try:
            return _checked_optimizer(value, rule, spikes)
        except (TypeError, ValueError):
            if own and not _is_optimizer(value):
                return value  # such as "auto", which only that compile understands
            raise

    parameters = signature.parameters.values()
    names = [
        each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    named = itertools.zip_longest(names[: len(args)], args)
    args = tuple(checked(name, value) for name, value in named)
    return args, {name: checked(name, value) for name, value in kwargs.items()}


def _chosen(model, rule, spikes, wrapped):
    """Return the optimizer that ``model.compile`` chose, ``wrapped``.

    As a list, which is empty if it chose none.
    """
    chosen = getattr(model, "optimizer", None)
    if type(chosen) is keras.optimizers.LossScaleOptimizer:
        replace_keras_scaler(model, rule, spikes)
    elif _is_optimizer(chosen):
        private.trainer.exchange_optimizer(model, chosen, wrapped(chosen))
    return _optimizers([model.optimizer], {})


def replace_keras_scaler(
    model: keras.Model, rule: LossScale | None = None, spikes: SpikeRule | None = None
) -> None:
    """Replace Keras's `LossScaleOptimizer` of ``model`` by ours.

    Ours takes over its scale and counters, unless there is a ``rule``.
    """
    old = model.optimizer
    own = {"name": old.name, "skip_spikes": spikes}
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

    Returns:
        A `LossScaleOptimizer`, or the Keras optimizer if ``model`` is in float32 and no
        rule is given.

    Raises:
        TypeError: ``optimizer`` is not an optimizer, or ``skip_spikes`` neither a bool
            nor a rule.
        ValueError: ``optimizer`` is Keras's own `LossScaleOptimizer`, or has a rule
            and another is given.

    Example:

    >>> optimizer = keras_mp.wrap_optimizer(model, keras.optimizers.Adam(2e-4))
    """
    distribute.check_scope(model, optimizer)
    rule = _checked_rule(scaling)
    spikes = checked_spike_rule("keras_mp.wrap_optimizer", skip_spikes)
    with distribute.scope_of(model):
        optimizer = _checked_optimizer(optimizer, rule, spikes)
        optimizer = _wrapped(model, optimizer, rule, spikes=spikes)
    distribute.prepare_steps(model, optimizer)
    execution.run_in_graph(model)
    return optimizer


def _wrapped(model, value, rule, guard=None, spikes=None):
    """Return ``value``, an optimizer guarded if needed, and ``model`` protected."""
    if not _is_optimizer(value):
        return value
    if isinstance(value, LossScaleOptimizer):
        value = _with_scale(model, value, rule)
    else:
        rule = rule or _needed_rule(model, value, guard if spikes is None else True)
        if rule is None:
            return value
        value = LossScaleOptimizer(value, rule, skip_spikes=spikes)
    protect(model, value)
    return value


def _with_scale(model, optimizer, rule):
    """Return ``optimizer``; if it only checks, with the rule that ``model`` needs."""
    if rule is None and needs_loss_scaling(model):
        rule = scaling.DynamicLossScale()
    if not optimizer.scaling.only_checks or rule in (None, optimizer.scaling):
        return optimizer
    inner = {"inner_optimizer": optimizer.inner_optimizer, "scaling": rule}
    return type(optimizer)(**optimizer.get_config() | inner)


def _needed_rule(model, optimizer, guard):
    """Return the rule that a Keras optimizer needs to train ``model``, or None.

    Without float16 it is a fixed scale: the one that the optimizer has, or 1.
    """
    if guard is False:
        return None
    if needs_loss_scaling(model):
        return scaling.DynamicLossScale()
    if guard or _computes_in(model, dtypes.LOW_PRECISION):
        return scaling.StaticLossScale(optimizer.loss_scale_factor or 1.0)
    return None


def needs_loss_scaling(model: keras.Model) -> bool:
    """Return whether any layer of ``model`` computes in float16."""
    return _computes_in(model, ("float16",))


def _computes_in(model, names):
    """Return whether any layer of ``model`` computes in one of the dtypes ``names``."""
    return any(
        layer.compute_dtype in names
        for layer in private.layers.walk(model)
        if not isinstance(layer, keras.layers.InputLayer)
    )


def make_safe(model: keras.Model) -> None:
    """Apply rules and precision lists to ``model``, and make it return float32.

    Its ``fit`` warns of data that is rounded too much, which no layer can help.
    """
    policies.apply_rules(model)
    _report_unmatched_rules(model)
    if policies.is_low_anywhere(model):
        guards.guard_steps(model)
        input_warnings.watch(model)


def _has_own_guard(model):
    """Return whether the ``compile`` of ``model`` has an argument ``guard``."""
    return "guard" in inspect.signature(model.compile).parameters


def _check_guard(model, policy, rule, guard, spikes):
    """Refuse a ``guard`` that is no bool, or False where the loss has to be scaled."""
    if not (guard is None or isinstance(guard, bool)):
        raise TypeError(
            "keras_mp.compile(guard=...) needs True, False or None, which guards a "
            f"model with layers in 16 bits. Got {guard!r}."
        )
    if guard is not False:
        return
    for name, value in (("scaling", rule), ("skip_spikes", spikes)):
        if value is not None:
            raise ValueError(
                f"keras_mp.compile({name}={value!r}, guard=False): a rule needs the "
                "LossScaleOptimizer that guard=False leaves out. Leave out one of the "
                "two."
            )
    half = needs_loss_scaling(model)
    if policy is not None:
        half = policies.get(policy).compute_dtype == "float16"
    if half:
        raise ValueError(
            f"keras_mp.compile(guard=False): model '{model.name}' would train in "
            "float16 without loss scaling, and gradients below 6e-8 would vanish. "
            "Leave guard out, or use 'mixed_bfloat16', which needs no scale."
        )


def _checked_rule(rule):
    return None if rule is None else scaling.get(rule)


def _checked_optimizer(optimizer, rule, spikes):
    """Return the Keras optimizer that was meant, if it can have ``rule`` and others."""
    if not isinstance(optimizer, LossScaleOptimizer):
        return checked_inner(optimizer)
    own = optimizer.scaling
    if rule is not None and rule != own and not own.only_checks:
        raise ValueError(
            f"scaling={rule!r} was given for optimizer '{optimizer.name}', which has "
            f"the rule {own!r} already. Give the rule in one place."
        )
    if spikes not in (None, optimizer.skip_spikes):
        raise ValueError(
            f"skip_spikes={spikes!r} was given for optimizer '{optimizer.name}', a "
            f"LossScaleOptimizer that has skip_spikes={optimizer.skip_spikes!r}. Give "
            "the rule to LossScaleOptimizer, or pass its `.inner_optimizer`."
        )
    return optimizer


def _report_unmatched_rules(model):
    """Warn about the rules of any policy in ``model`` that match none of its layers."""
    for rule, suggestion in policies.unmatched_rules(model):
        warnings.warn(
            f"Policy rule '{rule}' matches no layer of model '{model.name}', so "
            f"it keeps nothing in float32. {suggestion}",
            stacklevel=4,
        )
