"""`LossScaleOptimizer`: Keras's optimizer with a scaling rule and safe steps."""

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_mp import numerics
from keras_mp.optimizer import checkpoint
from keras_mp.optimizer.arguments import (
    checked_all_reduce_dtype,
    checked_inner,
    checked_on_skip,
    rule_of,
)
from keras_mp.optimizer.counters import Counters
from keras_mp.optimizer.spike_rule import SpikeRule, checked_spike_rule
from keras_mp.optimizer.step import Step
from keras_mp.saving import register
from keras_mp.scaling import LossScale


@register
class LossScaleOptimizer(Counters):
    """Scales the loss so that float16 gradients neither vanish nor overflow.

    A drop-in for `keras.optimizers.LossScaleOptimizer`. `scale_loss` multiplies the
    loss by the current scale. `apply` aggregates the gradients over the replicas,
    divides them by the scale and hands them to the inner optimizer, or, if any holds
    an inf or a NaN, changes no weight and no optimizer variable. Then the scaling rule
    sets the next scale. Nothing in a step synchronises with the device. With the rule
    ``StaticLossScale(1.0)`` it only checks: nothing is multiplied or divided.

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
        skip_spikes: None; True; or a `keras_mp.SpikeRule`, whose defaults True stands
            for: whether a step is skipped too if its loss or the norm of its gradients
            lies far above those of the last steps. The loss is what `scale_loss` was
            given, summed over the replicas. A loop without it, or one that calls it
            and `apply` in two functions, and gradient accumulation, have norms judged
            only; there the window whose mean is a spike is dropped.
        on_skip: What a skipped step does to a learning-rate schedule: ``"hold"``, as
            Keras's class does, leaves it where it is; ``"advance"``, as tf.keras did,
            moves it on as an update would, so that it ends with the data. All else
            counts updates only, in both: ``iterations``, Adam's bias correction,
            averages of weights and when they overwrite the weights. With
            ``gradient_accumulation_steps=N``, N dropped micro-batches move it by 1.
        **kwargs: Accepted and refused as by Keras's class.

    Raises:
        TypeError: ``inner_optimizer`` is not an optimizer, or ``skip_spikes`` none of
            these.
        ValueError: ``inner_optimizer`` already scales its loss; a scale is not finite
            and above 0; ``all_reduce_dtype`` is another dtype; ``on_skip`` another
            word; or both a rule and ``initial_scale`` or ``dynamic_growth_steps`` are
            given.

    Example:

    >>> optimizer = LossScaleOptimizer("sgd", initial_scale=1024.0)
    >>> weight = keras.Variable([1.0])
    >>> float(optimizer.scale_loss(1.0))
    1024.0
    >>> optimizer.apply([keras.ops.array([1024.0])], [weight])  # a gradient of 1
    >>> optimizer.stats()["applied"]
    1
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str | dict[str, Any],
        scaling: LossScale | str | float | None = None,
        dynamic_growth_steps: int | None = None,
        name: str | None = None,
        *,
        initial_scale: float | None = None,
        all_reduce_dtype: str | None = None,
        skip_spikes: SpikeRule | bool | dict[str, Any] | None = None,
        on_skip: str = "hold",
        **kwargs: Any,
    ) -> None:
        inner = checked_inner(inner_optimizer)
        all_reduce_dtype = checked_all_reduce_dtype(all_reduce_dtype)
        rule = rule_of(scaling, initial_scale, dynamic_growth_steps)
        spike_rule = checked_spike_rule("LossScaleOptimizer", skip_spikes)
        on_skip = checked_on_skip("LossScaleOptimizer", on_skip)
        factor = inner.loss_scale_factor
        super().__init__(inner, rule, spike_rule, on_skip, name=name, **kwargs)
        self._all_reduce_dtype = all_reduce_dtype
        if factor is not None and getattr(rule, "scale", None) != factor:
            warnings.warn(
                f"LossScaleOptimizer ignores loss_scale_factor={factor} of its "
                f"inner optimizer '{inner.name}': the loss would be scaled "
                "twice. For a fixed scale pass "
                f"scaling=keras_mp.scaling.StaticLossScale({factor}).",
                stacklevel=2,
            )

    # One step.

    def scale_loss(self, loss: Any) -> Any:
        """Return ``loss`` times the current scale.

        Call it once a step, and compute the gradients of what it returns. It does not
        synchronise with the device.

        Args:
            loss: The loss, a float tensor of any shape, usually a scalar.

        Returns:
            A tensor of the loss's shape, in float32, or in float64 if the loss is. For
            a rule that only checks, ``StaticLossScale(1.0)``, ``loss`` itself.

        Example:

        >>> optimizer = LossScaleOptimizer("sgd", initial_scale=1024.0)
        >>> float(optimizer.scale_loss(0.5))
        512.0
        """
        self._loop.loss_was_scaled()
        if self._spikes:
            self._spikes.note(loss)
        scale = self._scaler.divisor
        return loss if scale is None else ops.multiply(loss, scale)

    def get_scaled_loss(self, loss: Any) -> Any:
        """Return ``scale_loss(loss)``: `scale_loss` under its name in tf.keras.

        Args:
            loss: As for `scale_loss`.
        """
        return self.scale_loss(loss)

    def get_unscaled_gradients(self, grads: Iterable[Any]) -> list[Any]:
        """Return ``grads`` divided by the scale, for loops that clip or log them.

        After this call `apply` does not divide gradients by the scale, until the next
        `scale_loss`. Under a strategy the gradients are those of this replica, not yet
        aggregated. It does not synchronise with the device.

        Args:
            grads: Gradients of a scaled loss: tensors, sparse gradients or None.

        Returns:
            A list of gradients of the same kinds, shapes and dtypes.
        """
        self._loop.gradients_were_unscaled()
        return [numerics.unscale(gradient, self._scaler.divisor) for gradient in grads]

    def check_finite(self, grads: Iterable[Any]) -> Any:
        """Return whether no gradient holds an inf or a NaN.

        It does not synchronise with the device.

        Args:
            grads: Gradients of any float dtypes: tensors, sparse gradients or None.

        Returns:
            A scalar bool tensor.

        Example:

        >>> optimizer = LossScaleOptimizer("sgd")
        >>> bool(optimizer.check_finite([keras.ops.array([1.0, float("inf")])]))
        False
        """
        return numerics.all_finite(grads)

    def apply(
        self,
        grads: Iterable[Any],
        trainable_variables: Iterable[Any] | None = None,
        *,
        aggregate_gradients: bool = True,
    ) -> None:
        """Update the variables with the gradients of a scaled loss, if all are finite.

        If the inner optimizer has ``gradient_accumulation_steps=N``, these are the
        gradients of a micro-batch: each N-th finite one updates the variables with the
        mean of N. One that is not finite is dropped, and the next one takes its place.

        It does not synchronise with the device.

        Args:
            grads: Gradients, of this replica under a strategy: tensors of the
                variables' shapes and any float dtypes, sparse gradients or None.
            trainable_variables: The variables they belong to. Defaults to those that
                the optimizer was built with.
            aggregate_gradients: False if ``grads`` are summed over the replicas
                already. Whether they are finite is still decided over all replicas.

        Raises:
            ValueError: The numbers of gradients and variables differ; or it is called
                outside of a replica's context, or under another strategy than the
                optimizer was created under.
        """
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        variables = self._variables_of(grads, trainable_variables)
        scale = self._scaler.divisor
        unscaled = scale is None or self._loop.are_unscaled()
        if unscaled and scale is not None and self._all_reduce_dtype:
            # Scaled gradients fit the narrower dtype in which they are summed.
            grads = [numerics.rescale(gradient, scale) for gradient in grads]
            unscaled = False
        Step(
            self._scaler,
            self.inner_optimizer,
            grads,
            variables,
            unscaled=unscaled,
            aggregated=not aggregate_gradients,
            wire_dtype=self._all_reduce_dtype,
            by_variable=self._tracking.of_step(self.inner_optimizer),
            spikes=self._spikes,
            schedules=self._schedules,
        ).run()

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        *,
        aggregate_gradients: bool = True,
    ) -> Any:
        """Call `apply` with pairs of gradients and variables, as in tf.keras.

        It does not synchronise with the device.

        Args:
            grads_and_vars: Pairs of a gradient and its variable.
            aggregate_gradients: As for `apply`.

        Returns:
            The variable ``iterations``: a scalar int, the updates of the inner
            optimizer so far.

        Raises:
            ValueError: As for `apply`.
        """
        grads, trainable_variables = zip(*grads_and_vars, strict=True)
        self.apply(grads, trainable_variables, aggregate_gradients=aggregate_gradients)
        return self._iterations

    def _variables_of(
        self, grads: list[Any], trainable_variables: list[Any] | None
    ) -> list[Any]:
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

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the values that `apply` would assign to the variables.

        For training loops that keep all state themselves, as with JAX. The optimizer
        must have been built. It does not synchronise with the device.

        Args:
            optimizer_variables: Values of ``optimizer.variables``, in that order.
            grads: Gradients of a scaled loss, a tensor for each trainable variable.
            trainable_variables: Values of the variables that the optimizer was built
                with, in that order.

        Returns:
            The new values of the trainable variables and of the optimizer's variables:
            two sequences of tensors of the same shapes and dtypes.

        Raises:
            RuntimeError: After `track_overflows`, or with ``skip_spikes``.
        """
        self._check_stateless()
        mapping = list(zip(self.variables, optimizer_variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            skipped = self._scaler.skipped
            verdict = self._scaler.judge(grads, unscaled=False)
            grads = numerics.unscale_all(
                grads, self._trainable_variables, self._scaler.divisor
            )
            self._scaler.advance(verdict)
        own = [scope.get_current_value(variable) for variable in self._variables]
        inner = list(optimizer_variables[len(own) :])
        with self._schedules.moved_on(lambda: skipped):
            trainable_variables, inner = ops.cond(
                verdict.finite,
                lambda: self.inner_optimizer.stateless_apply(
                    inner, grads, trainable_variables
                ),
                lambda: (trainable_variables, inner),
            )
        return trainable_variables, own + inner

    def in_train_step(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for one whole step: forward pass, gradients and `apply`.

        In it, gradients of a loss that was never scaled are not divided by the scale.
        """
        return self._loop.whole_step()

    # Saving.

    def save_own_variables(self, store: Any) -> None:
        """Write the variables of Keras's class by its keys, others by their names."""
        checkpoint.save(self, self._variables, store)

    def load_own_variables(self, store: Any) -> None:
        """Read a checkpoint of this class, of Keras's class or of the bare optimizer.

        State that the checkpoint does not have, and counts of another number of
        replicas, keep their values. A scale that the rule does not allow, such as the 0
        or inf that Keras's class can reach, is moved into the rule's range.
        """
        loaded = checkpoint.load(self, self._variables, store)
        if loaded is None:
            super().load_own_variables(store)
        elif loaded == "all":
            self._scaler.adopt_state()

    def get_config(self) -> dict[str, Any]:
        """Return a new dict; Keras's class reads it if it has Keras's keys only."""
        config = {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
        }
        if self._all_reduce_dtype:
            config["all_reduce_dtype"] = self._all_reduce_dtype
        if self.skip_spikes:
            config["skip_spikes"] = keras.saving.serialize_keras_object(
                self.skip_spikes
            )
        if self.on_skip != "hold":
            config["on_skip"] = self.on_skip
        rule, growth_steps = self.scaling, self.dynamic_growth_steps
        if growth_steps and rule == rule_of(None, self.initial_scale, growth_steps):
            config["initial_scale"] = self.initial_scale
            config["dynamic_growth_steps"] = growth_steps
        else:
            config["scaling"] = keras.saving.serialize_keras_object(rule)
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "LossScaleOptimizer":
        """Build an optimizer from a config of this class or of Keras's."""
        inner_optimizer = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        rest = {k: v for k, v in config.items() if k != "inner_optimizer"}
        return cls(inner_optimizer, **rest)
