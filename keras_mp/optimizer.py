"""`LossScaleOptimizer`: joins a scaling rule, the gradient checks and Keras."""

import contextlib
import dataclasses
import functools
import numbers
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mp import (
    accumulation,
    distribute,
    dtypes,
    fused,
    kinds,
    numerics,
    private,
    scaling,
)
from keras_mp.scaling import LossScale

# What the wrapper must not answer for itself: these settings and this state are the
# inner optimizer's. The base class gives every optimizer its own; the wrapper drops
# them, so that reading and writing them reaches the inner optimizer.
_OF_INNER = frozenset(
    {
        "weight_decay",
        "clipnorm",
        "global_clipnorm",
        "clipvalue",
        "use_ema",
        "ema_momentum",
        "ema_overwrite_frequency",
        "gradient_accumulation_steps",
        "built",
        "_iterations",
        "_trainable_variables",
        "_trainable_variables_indices",
    }
)

# Keras's class holds iteration, learning rate, step counter and scale, in this order.
_KERAS_OWN = 4

_COUNTERS = ("applied", "skipped", "consecutive_skipped", "growths", "backoffs")


@keras.saving.register_keras_serializable("keras_mp")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Scales the loss so that float16 gradients neither vanish nor overflow.

    A drop-in for `keras.optimizers.LossScaleOptimizer`. `scale_loss` multiplies the
    loss by the current scale. `apply` aggregates the gradients over the replicas,
    divides them by the scale and hands them to the inner optimizer, or, if any holds
    an inf or a NaN, changes no weight and no optimizer variable. Then the scaling rule
    sets the next scale. Nothing in a step synchronises with the device.

    Every other attribute and setting (``beta_1``, ``weight_decay``, ``clipnorm``,
    `exclude_from_weight_decay`, ...) is the inner optimizer's.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`, or its name or config. If it
            has been built, its variables are kept.
        scaling: A rule of `keras_mp.scaling`, ``"dynamic"`` or ``"log_normal"``. A
            plain number is an initial scale, as for Keras's class. Defaults to dynamic
            scaling with ``initial_scale`` and ``dynamic_growth_steps``.
        dynamic_growth_steps: Keras's name for the rule's ``growth_interval``. Defaults
            to 2000 steps.
        name: Name of the optimizer.
        initial_scale: First scale of dynamic scaling. Defaults to 2**15.
        all_reduce_dtype: None, or ``"float16"`` or ``"bfloat16"``: the dtype in which
            float32 gradients are summed over the replicas, which halves what crosses
            the network. Sums cannot overflow; a gradient that does not fit float16 is
            an overflow like any other. No effect on one device.
        **kwargs: Accepted and refused as by Keras's class.

    Raises:
        TypeError: ``inner_optimizer`` is no optimizer.
        ValueError: ``inner_optimizer`` already scales its loss; a scale is not finite
            and above 0; ``all_reduce_dtype`` is another dtype; or both a rule and
            ``initial_scale`` or ``dynamic_growth_steps`` are given.

    Example:

    >>> optimizer = LossScaleOptimizer("sgd", initial_scale=1024.0)
    >>> weight = keras.Variable([1.0])
    >>> float(optimizer.scale_loss(1.0))
    1024.0
    >>> optimizer.apply([keras.ops.array([1024.0])], [weight])  # a gradient of 1
    >>> optimizer.stats()["applied"]
    1
    """

    # Until __init__ has called its base class, which assigns attributes.
    _scaling = None

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str | dict,
        scaling: LossScale | str | float | None = None,
        dynamic_growth_steps: int | None = None,
        name: str | None = None,
        *,
        initial_scale: float | None = None,
        all_reduce_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        inner_optimizer = checked_inner(inner_optimizer)
        _check_all_reduce_dtype(all_reduce_dtype)
        rule = _rule(scaling, initial_scale, dynamic_growth_steps)
        factor = inner_optimizer.loss_scale_factor
        super().__init__(inner_optimizer, name=name, **kwargs)
        for attribute in _OF_INNER:
            delattr(self, attribute)
        self._scaling = rule
        self._all_reduce_dtype = all_reduce_dtype
        self._loop = threading.local()
        self._was_scaled = False
        self._warned_unscaled = False
        self._make_state()
        if factor is not None:
            warnings.warn(
                f"LossScaleOptimizer ignores loss_scale_factor={factor} of its "
                f"inner optimizer '{inner_optimizer.name}': the loss would be scaled "
                "twice. For a fixed scale pass "
                f"scaling=keras_mp.scaling.StaticLossScale({factor}).",
                stacklevel=2,
            )

    def _make_state(self):
        """Create the rule's state and the counters as variables, equal everywhere.

        Every one of them is assigned once for all replicas, from a verdict that all
        replicas share, so none needs an aggregation.
        """
        state = self._scaling.init()
        self.step_counter = self._scalar("step_counter", state.clean_steps)
        self.dynamic_scale = self._scalar("dynamic_scale", state.scale)
        self._counters = self.add_variable(
            (len(_COUNTERS),), dtype="int", aggregation="none", name="counters"
        )
        self._nonfinite_losses = self._scalar("nonfinite_losses", np.int32(0))
        self._extra_state = {
            field: self._scalar(field, value)
            for field, value in state._asdict().items()
            if field not in ("scale", "clean_steps")
        }
        replicas = distribute.replicas()
        self._overflows = None
        if replicas > 1:
            self._overflows = self.add_variable(
                (replicas,), dtype="int", aggregation="none", name="overflows"
            )

    def _scalar(self, name, value):
        return self.add_variable(
            (),
            initializer=keras.initializers.Constant(value),
            dtype="int" if isinstance(value, np.integer) else "float32",
            aggregation="none",
            name=name,
        )

    # Attributes that are the inner optimizer's.

    def __getattr__(self, name):
        inner = self.__dict__.get("inner_optimizer")
        if inner is None or (name.startswith("_") and name not in _OF_INNER):
            raise AttributeError(
                f"'{type(self).__name__}' object has no attribute '{name}'"
            )
        return getattr(inner, name)

    def __setattr__(self, name, value):
        inner = self.__dict__.get("inner_optimizer")
        if inner is not None and self._is_of_inner(inner, name):
            setattr(inner, name, value)
        else:
            super().__setattr__(name, value)

    def _is_of_inner(self, inner, name):
        if name in _OF_INNER:
            return self._scaling is not None
        own = name in self.__dict__ or hasattr(type(self), name)
        return not own and not name.startswith("_") and hasattr(inner, name)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Exclude variables from the inner optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def learning_rate(self):
        """The inner optimizer's learning rate, of the next update."""
        if self.gradient_accumulation_steps:
            return accumulation.learning_rate(self.inner_optimizer)
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner_optimizer.learning_rate = value

    # The scaling rule, under our name and under Keras's two.

    @property
    def scaling(self) -> LossScale:
        """The scaling rule, a frozen config."""
        return self._scaling

    @property
    def initial_scale(self) -> float:
        """The rule's first scale."""
        return self._scaling.initial_scale

    @initial_scale.setter
    def initial_scale(self, value):
        self._change_rule(initial_scale=value)
        if self._scaling is not None and not self.built:
            self._scale_variable.assign(self._scaling.initial_scale)

    @property
    def dynamic_scale(self) -> keras.Variable:
        """The variable that holds what the next loss is multiplied by, a float32."""
        # A loop of the user's own may multiply its loss by it.
        self._loop.scale_was_read = True
        return self._scale_variable

    @dynamic_scale.setter
    def dynamic_scale(self, variable):
        self.__dict__["_scale_variable"] = variable

    @property
    def dynamic_growth_steps(self) -> int | None:
        """The rule's ``growth_interval``; None for a rule without one."""
        return getattr(self._scaling, "growth_interval", None)

    @dynamic_growth_steps.setter
    def dynamic_growth_steps(self, value):
        self._change_rule(growth_interval=value)

    def _change_rule(self, **changes):
        if self._scaling is None:  # the base class's __init__ is at work
            return
        (name,) = changes
        if name not in {field.name for field in dataclasses.fields(self._scaling)}:
            raise AttributeError(
                f"The scaling rule {self._scaling!r} has no `{name}` to set. Make a "
                "new LossScaleOptimizer with the rule you want."
            )
        self._scaling = dataclasses.replace(self._scaling, **changes)

    # One step.

    def build(self, var_list):
        """Create the inner optimizer's variables, unless it has them."""
        if not self.inner_optimizer.built:
            distribute.run_once(lambda: self.inner_optimizer.build(var_list))

    def scale_loss(self, loss: Any) -> Any:
        """Return ``loss`` times the current scale, at least in float32.

        Does not synchronise with the device.
        """
        self._loop.scaled, self._loop.unscaled = True, False
        self._was_scaled = True
        return ops.multiply(loss, self._scale_variable)

    def get_scaled_loss(self, loss: Any) -> Any:
        """Return ``loss`` times the scale; tf.keras's name for `scale_loss`."""
        return self.scale_loss(loss)

    def get_unscaled_gradients(self, grads: Iterable) -> list:
        """Return ``grads`` divided by the scale, for loops that clip or log them.

        Afterwards `apply` takes gradients as they are, until the next `scale_loss`.
        Under a strategy they are this replica's, not yet aggregated.

        Args:
            grads: List of gradients of a scaled loss; None and sparse ones are kept.

        Does not synchronise with the device.
        """
        self._loop.unscaled = True
        return [numerics.unscale(gradient, self._scale_variable) for gradient in grads]

    def check_finite(self, grads: Iterable) -> Any:
        """Return a scalar bool tensor: no gradient holds an inf or a NaN."""
        return numerics.all_finite(grads)

    def apply(
        self,
        grads: Iterable,
        trainable_variables: Iterable | None = None,
        *,
        aggregate_gradients: bool = True,
    ) -> None:
        """Update the variables with the gradients of a scaled loss, if all are finite.

        Where the inner optimizer has ``gradient_accumulation_steps=N``, these are the
        gradients of a micro-batch: every N-th one that is finite updates, with the
        mean of N, and one that is not is dropped and replaced by the next.

        Args:
            grads: List of gradients, of this replica under a strategy. None and sparse
                gradients are allowed.
            trainable_variables: The variables they belong to. Defaults to those the
                optimizer was built with.
            aggregate_gradients: False if ``grads`` are summed over the replicas
                already. They are judged on all replicas all the same.

        Raises:
            ValueError: Called outside a replica's context, or under a strategy that
                the optimizer was not created under.

        Does not synchronise with the device.
        """
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        variables = self._variables_of(grads, trainable_variables)
        unscaled = self._are_unscaled()
        if unscaled and self._all_reduce_dtype:
            # The scale is what keeps them inside the narrower range on their way.
            grads = [
                numerics.rescale(gradient, self._scale_variable) for gradient in grads
            ]
            unscaled = False
        window = self._window(variables, unscaled)

        scale = None if unscaled else self._scale_variable
        inner = self.inner_optimizer

        def update(grads, divided):
            if private.tracing.in_xla():
                grads = [private.tracing.cast_here(gradient) for gradient in grads]
            if not divided:
                grads = self._unscaled(grads, variables, scale)
            with window.closing() if window else contextlib.nullcontext():
                inner.apply(grads, trainable_variables)

        def commit(each, grads, finite=None):
            with (
                private.optimizers.update_only(inner),
                fused.updates(inner, scale, variables, finite) as divides,
            ):
                each(functools.partial(update, divided=divides), grads)

        step = distribute.Step(
            judge=lambda grads: self._judge(grads, unscaled),
            commit=commit,
            advance=self._advance,
            count=self._count_overflows if distribute.replicas() > 1 else None,
            masks=window is None and fused.masks(inner, grads, variables),
            window=window,
            aggregate=aggregate_gradients,
            wire_dtype=self._all_reduce_dtype,
            overwrites=[kinds.overwrites(variable) for variable in variables],
        )
        distribute.run_step(step, grads, state=self._scale_variable)

    def apply_gradients(
        self, grads_and_vars: Iterable, *, aggregate_gradients: bool = True
    ) -> Any:
        """Call `apply` with pairs of gradients and variables; return ``iterations``."""
        grads, trainable_variables = zip(*grads_and_vars, strict=True)
        self.apply(grads, trainable_variables, aggregate_gradients=aggregate_gradients)
        return self._iterations

    def _variables_of(self, grads, trainable_variables):
        variables = trainable_variables
        if variables is None:
            variables = self._trainable_variables
        if len(grads) != len(variables):
            raise ValueError(
                "LossScaleOptimizer.apply(grads, trainable_variables) needs one "
                f"gradient, or None, for each variable. Got {len(grads)} gradients "
                f"for {len(variables)} variables."
            )
        return variables

    def _window(self, variables, unscaled):
        """Return the accumulation window of the inner optimizer, if it has one."""
        if not self.gradient_accumulation_steps:
            return None
        scale = None if unscaled else self._scale_variable
        return accumulation.Window(self.inner_optimizer, variables, scale)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        """Return what `apply` would make of the variables, for stateless backends."""
        mapping = list(zip(self.variables, optimizer_variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            verdict = self._judge(grads, unscaled=False)
            grads = self._unscaled(
                grads, self._trainable_variables, self._scale_variable
            )
            self._advance(verdict)
        own = [scope.get_current_value(variable) for variable in self._variables]
        inner = list(optimizer_variables[len(own) :])
        trainable_variables, inner = ops.cond(
            verdict.finite,
            lambda: self.inner_optimizer.stateless_apply(
                inner, grads, trainable_variables
            ),
            lambda: (trainable_variables, inner),
        )
        return trainable_variables, own + inner

    @contextlib.contextmanager
    def in_train_step(self):
        """Return a context for one whole step: forward pass, gradients and `apply`.

        There, gradients of a loss that was never scaled are taken as they are.
        """
        self._loop.in_whole_step, self._loop.scale_was_read = True, False
        try:
            yield
        finally:
            self._loop.in_whole_step = False

    def _are_unscaled(self):
        """Return whether this loop's gradients are unscaled already; warn if unsure.

        Only `scale_loss` starts anew: it may be traced once and `apply` called often.
        """
        scaled = getattr(self._loop, "scaled", False)
        unscaled = getattr(self._loop, "unscaled", False)
        if scaled or unscaled:
            return unscaled
        knows = getattr(self._loop, "in_whole_step", False) and not self._was_scaled
        if knows and self._loop.scale_was_read:
            return False  # the step has multiplied its loss by hand
        if not self._warned_unscaled:
            self._warned_unscaled = True
            warnings.warn(_NEVER_SCALED if knows else _NOT_SCALED, stacklevel=3)
        return knows

    def _unscaled(self, grads, variables, scale):
        return [
            # A float8 layer's "gradients" are its new scaling factors.
            gradient
            if kinds.overwrites(variable)
            else numerics.unscale(gradient, scale)
            for gradient, variable in zip(grads, variables, strict=True)
        ]

    def _judge(self, grads, unscaled):
        if not self._scaling.needs_largest:
            return scaling.Verdict(numerics.all_finite(grads))
        largest = numerics.largest(grads)
        finite = ops.isfinite(largest)
        if not unscaled:
            largest = ops.divide(largest, self._scale_variable)
        return scaling.Verdict(finite, largest)

    def _advance(self, verdict):
        """Let the rule set the next scale, and count the step."""
        old = self._state()
        new = self._scaling.update(old, verdict)
        exhausted = self._scaling.exhausted(old, verdict)
        grown = ops.greater(new.scale, old.scale)
        shrunk = ops.less(new.scale, old.scale)
        bad = ops.logical_not(verdict.finite)
        events = ops.stack([verdict.finite, bad, bad, grown, shrunk])
        ongoing = ops.stack([True, True, bad, True, True])
        self._counters.assign(
            self._counters * ops.cast(ongoing, self._counters.dtype)
            + ops.cast(events, self._counters.dtype)
        )
        variables = self._state_variables().values()
        for variable, before, after in zip(variables, old, new, strict=True):
            if after is not before:
                variable.assign(after)
        if exhausted is not False:
            private.kernels.raise_if(exhausted, _EXHAUSTED)

    def _count_overflows(self, overflowed):
        self._overflows.assign_add(ops.cast(overflowed, self._overflows.dtype))

    def count_loss(self, nonfinite: Any) -> None:
        """Count a step whose loss was not finite.

        Args:
            nonfinite: Scalar bool tensor, of this replica: whether it was not.
        """
        distribute.count_if_any(self._nonfinite_losses, nonfinite)

    def _state_variables(self):
        """Return the variables that hold the rule's state, by field, in its order."""
        known = {"scale": self._scale_variable, "clean_steps": self.step_counter}
        return known | self._extra_state

    def _state(self):
        state = type(self._scaling.init())
        values = {k: v.value for k, v in self._state_variables().items()}
        return state(**values)

    # What a person reads.

    @property
    def skipped_steps(self):
        """Steps skipped so far, as a scalar int tensor that needs no synchronising."""
        return self._counters.value[_COUNTERS.index("skipped")]

    def stats(self) -> dict[str, float | int]:
        """Return the scale and the counters as plain numbers.

        Returns:
            A dict with ``scale`` (float: what the next loss is multiplied by) and the
            ints ``steps`` (calls of `apply`), ``applied``, ``skipped``,
            ``consecutive_skipped`` (the current run of skipped steps), ``growths`` and
            ``backoffs`` (changes of the scale), and ``nonfinite_losses`` (steps whose
            loss was inf or NaN, skipped or not; `keras_mp.compile` has the steps of
            ``fit`` and ``train_on_batch`` counted, loops of your own are not; across
            machines, each counts its own).

        Synchronises with the device.
        """
        counters = dict(zip(_COUNTERS, _read(self._counters), strict=True))
        return {
            "scale": _read(self._scale_variable),
            "steps": counters["applied"] + counters["skipped"],
            **counters,
            "nonfinite_losses": _read(self._nonfinite_losses),
        }

    def overflows_by_replica(self) -> list[int]:
        """Return how often each replica's own gradients were not finite.

        The replicas of all machines, in the order of ``replica_id_in_sync_group``. Not
        a sum over the skipped steps: several replicas may overflow in one, or none,
        where only their sum is too large.

        Synchronises with the device.
        """
        if self._overflows is None:
            return [self.stats()["skipped"]]
        return _read(self._overflows)

    # Saving.

    def save_own_variables(self, store):
        """Write Keras's variables under Keras's keys, and ours under their names."""
        for index, variable in enumerate(self._keras_variables()):
            store[str(index)] = variable.numpy()
        for name, variable in self._named_variables().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store):
        """Read a checkpoint of this class, of Keras's class or of the bare optimizer.

        State that the checkpoint does not hold, and counts of another number of
        replicas, start afresh; a scale that the rule
        does not allow, such as the 0 or inf that Keras's class can reach, is moved
        into the rule's range.
        """
        indexed = sum(key.isdigit() for key in store.keys())
        if indexed == len(self.inner_optimizer.variables):
            return self.inner_optimizer.load_own_variables(store)
        if indexed != len(self._keras_variables()):
            return super().load_own_variables(store)
        for index, variable in enumerate(self._keras_variables()):
            variable.assign(store[str(index)])
        for name, variable in self._named_variables().items():
            if name in store.keys() and store[name].shape == variable.shape:
                variable.assign(store[name])
        self._adopt_state()

    def _keras_variables(self):
        return self._variables[:_KERAS_OWN] + self.inner_optimizer.variables

    def _named_variables(self):
        return {variable.name: variable for variable in self._variables[_KERAS_OWN:]}

    def _adopt_state(self):
        variables = self._state_variables()
        state = type(self._scaling.init())
        read = state(**{k: v.numpy().item() for k, v in variables.items()})
        adopted = self._scaling.adopt(read)
        for variable, value in zip(variables.values(), adopted, strict=True):
            variable.assign(value)

    def get_config(self):
        """Return a new dict; Keras's own four keys where they say it all."""
        config = {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
        }
        if self._all_reduce_dtype:
            config["all_reduce_dtype"] = self._all_reduce_dtype
        rule, growth_steps = self._scaling, self.dynamic_growth_steps
        if growth_steps and rule == _rule(None, self.initial_scale, growth_steps):
            config["initial_scale"] = self.initial_scale
            config["dynamic_growth_steps"] = growth_steps
        else:
            config["scaling"] = keras.saving.serialize_keras_object(rule)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build an optimizer from a config of this class or of Keras's."""
        inner_optimizer = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        rest = {k: v for k, v in config.items() if k != "inner_optimizer"}
        return cls(inner_optimizer, **rest)


_NEVER_SCALED = (
    "This train_step calls LossScaleOptimizer.apply() without scale_loss() before it, "
    "so its gradients are taken as they are, not divided by the scale. Training goes "
    "on, but gradients that are too small for float16 are lost. Compute the gradients "
    "of `optimizer.scale_loss(loss)`, or use mixed_bfloat16, which needs no scale."
)

_NOT_SCALED = (
    "LossScaleOptimizer.apply() was called without scale_loss() before it. Gradients "
    "are divided by the scale; if the loss was not multiplied by it, every update "
    "shrinks to nearly nothing. Compute the gradients of `optimizer.scale_loss(loss)`."
)

_EXHAUSTED = (
    "LossScaleOptimizer: gradients overflowed although the loss scale has already "
    "fallen to its floor (min_scale), so no smaller scale can help. Look for NaN or "
    "inf in the inputs, a learning rate that diverges, or a layer that needs float32; "
    "on_floor='hold' keeps skipping such steps instead."
)


def _read(variable):
    """Return the value of ``variable`` as a plain number, or a list of them."""
    return np.asarray(ops.convert_to_tensor(variable)).tolist()


def checked_inner(inner_optimizer):
    """Return the optimizer that was named, configured or passed."""
    if isinstance(inner_optimizer, str | dict):
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


def _check_all_reduce_dtype(dtype):
    if dtype is not None and dtype not in dtypes.LOW_PRECISION:
        raise ValueError(
            f"LossScaleOptimizer(all_reduce_dtype={dtype!r}): it must be None, "
            "'float16' or 'bfloat16'. None sums gradients in their own dtype."
        )


def _rule(rule, initial_scale, growth_steps):
    """Return the rule that the constructor's arguments ask for."""
    if isinstance(rule, numbers.Real) and not isinstance(rule, bool):
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


def _dynamic_rule(initial_scale, growth_steps):
    """Return the default rule with Keras's two settings.

    Keras knows no floor and no cap, so a first scale beyond ours moves them.
    """
    settings = {}
    if growth_steps is not None:
        settings["growth_interval"] = growth_steps
    if initial_scale is not None:
        rule = scaling.DynamicLossScale
        usable = scaling.StaticLossScale(initial_scale).scale
        settings["initial_scale"] = usable
        settings["min_scale"] = min(usable, rule.min_scale)
        settings["max_scale"] = max(usable, rule.max_scale)
    return scaling.DynamicLossScale(**settings)
