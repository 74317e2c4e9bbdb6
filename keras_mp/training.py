"""The one-call path: compile a model."""

import contextlib
import functools
import inspect
import itertools
import warnings
from typing import Any

import keras

from keras_mp import (
    arguments,
    calibration,
    conversion,
    distribute,
    guarded,
    guards,
    heads,
    input_warnings,
    policies,
    private,
    resuming,
)
from keras_mp.optimizer import SpikeRule
from keras_mp.scaling import LossScale
from keras_mp.speed import execution


def compile(
    model: keras.Model,
    *args: Any,
    policy: keras.DTypePolicy | str | None = None,
    scaling: LossScale | str | None = None,
    guard: bool | None = None,
    skip_spikes: SpikeRule | bool | None = None,
    on_skip: str | None = None,
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
        on_skip: None; or what a skipped step does to a learning-rate schedule: leave it
            where it is, ``"hold"``, which is what None means for a new optimizer, or
            move it on, ``"advance"`` (`LossScaleOptimizer`).
        **kwargs: Keyword arguments of ``model.compile``.

    Raises:
        TypeError: ``model`` is not a Keras model, ``optimizer`` is not an optimizer, or
            ``model.compile`` does not take the arguments; or ``guard`` is no bool, or
            ``skip_spikes`` neither a bool nor a rule.
        ValueError: ``optimizer`` is Keras's own `LossScaleOptimizer`; a rule is given
            together with an optimizer that has another, or with ``guard=False``;
            ``guard=False`` is given for float16; there is no scale to calibrate;
            ``on_skip`` is another word; the policy is unknown; or the policy does not
            fit the model's variables.

    After an error, also of ``model.compile``, the model is as it was before.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> keras_mp.compile(model, "adam", loss="mse", policy="mixed_float16")
    >>> model.optimizer.stats()["scale"]
    32768.0
    """
    arguments.check_model("keras_mp.compile(model, ...)", model)
    calibrates = isinstance(scaling, str) and scaling == "calibrate"
    given = None if calibrates else guarded.checked_rule(scaling)
    rule = guarded.checked_rule("dynamic") if calibrates else given
    if _has_own_guard(model):
        kwargs, guard = kwargs | ({} if guard is None else {"guard": guard}), None
    settings = guarded.checked_settings("keras_mp.compile", skip_spikes, on_skip)
    _check_guard(model, policy, guard, {"scaling": rule, **settings})
    wrapped = functools.partial(
        guarded.wrapped, model, rule=rule, settings=settings, guard=guard
    )
    for optimizer in (None, *guarded.optimizers_in(args, kwargs)):
        distribute.check_scope(model, optimizer)
    with _as_it_was_if_refused(model):
        with distribute.scope_of(model):
            args, kwargs = _checked_arguments(model, args, kwargs, given, settings)
            if policy is not None:
                conversion.convert(model, policy)
            make_safe(model)
            args = tuple(map(wrapped, args))
            kwargs = {name: wrapped(value) for name, value in kwargs.items()}
            model.compile(*args, **kwargs)
            optimizers = guarded.optimizers_in(args, kwargs)
            if not optimizers:
                optimizers = _chosen(model, rule, settings, wrapped)
            heads.keep_in_float32(model)
            private.trainer.keep_bare_when_loaded(model)
        for optimizer in optimizers:
            distribute.prepare_steps(model, optimizer)
        execution.speed_up(model)
        resuming.attach(model)
        guards.fall_back(model)
        if calibrates:
            calibration.calibrate_first_step(model)


@contextlib.contextmanager
def _as_it_was_if_refused(model):
    """Give ``model`` back its policies, guards and optimizer if the block raises."""
    optimizer = getattr(model, "optimizer", None)
    variables = [(each, each.dtype) for each in model.variables]
    restore = private.attributes.kept(private.layers.walk(model))
    try:
        yield
    except BaseException:
        restore()
        for variable, dtype in variables:
            if variable.dtype != dtype:
                private.variables.retype(variable, dtype)
        if optimizer is not None:
            model.optimizer = optimizer  # TensorFlow tracks what is set
        raise


def _checked_arguments(model, args, kwargs, rule, settings):
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
        if value is None or not (name == "optimizer" or guarded.is_optimizer(value)):
            return value
        try:
            return guarded.checked_optimizer(value, rule, settings)
        except (TypeError, ValueError):
            if own and not guarded.is_optimizer(value):
                return value  # such as "auto", which only that compile understands
            raise

    parameters = signature.parameters.values()
    names = [
        each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    named = itertools.zip_longest(names[: len(args)], args)
    args = tuple(checked(name, value) for name, value in named)
    return args, {name: checked(name, value) for name, value in kwargs.items()}


def _chosen(model, rule, settings, wrapped):
    """Return the optimizer that ``model.compile`` chose, ``wrapped``.

    As a list, which is empty if it chose none.
    """
    chosen = getattr(model, "optimizer", None)
    if type(chosen) is keras.optimizers.LossScaleOptimizer:
        guarded.replace_keras_scaler(model, rule, **settings)
    elif guarded.is_optimizer(chosen):
        private.trainer.exchange_optimizer(model, chosen, wrapped(chosen))
    return guarded.optimizers_in([model.optimizer], {})


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


def _check_guard(model, policy, guard, settings):
    """Refuse a ``guard`` that is no bool, or False where the loss has to be scaled."""
    if not (guard is None or isinstance(guard, bool)):
        raise TypeError(
            "keras_mp.compile(guard=...) needs True, False or None, which guards a "
            f"model with layers in 16 bits. Got {guard!r}."
        )
    if guard is not False:
        return
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"keras_mp.compile({name}={value!r}, guard=False): that needs the "
                "LossScaleOptimizer that guard=False leaves out. Leave out one of the "
                "two."
            )
    half = guarded.needs_loss_scaling(model)
    if policy is not None:
        half = policies.get(policy).compute_dtype == "float16"
    if half:
        raise ValueError(
            f"keras_mp.compile(guard=False): model '{model.name}' would train in "
            "float16 without loss scaling, and gradients below 6e-8 would vanish. "
            "Leave guard out, or use 'mixed_bfloat16', which needs no scale."
        )


def _report_unmatched_rules(model):
    """Warn about the rules of any policy in ``model`` that match none of its layers."""
    for rule, suggestion in policies.unmatched_rules(model):
        warnings.warn(
            f"Policy rule '{rule}' matches no layer of model '{model.name}', so "
            f"it keeps nothing in float32. {suggestion}",
            stacklevel=4,
        )
