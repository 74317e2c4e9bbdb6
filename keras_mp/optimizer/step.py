"""One step of the optimizer: aggregate, judge once, commit or skip, advance.

Under a strategy, gradients are aggregated first and judged afterwards, so that every
replica reaches the same verdict, and they cross the network once. All branches are
taken where the replicas meet: a branch taken inside a replica may hold no
``merge_call``, which Keras's optimizers make. What belongs to a replica is called by
``devices.run``.
"""

import contextlib
import functools
from typing import Any, NamedTuple

from keras import ops

from keras_mp import distribute, fused, kinds, numerics, private
from keras_mp.optimizer.accumulation import Window
from keras_mp.optimizer.overflows import Overflows
from keras_mp.scaling import Verdict


class Step:
    """What `LossScaleOptimizer.apply` does with one list of gradients.

    Args:
        scaler: The `Scaler` that judges, and that the verdict advances.
        inner: The built Keras optimizer that updates.
        gradients: List of tensors, sparse gradients and None, of this replica.
        variables: The variables that they belong to.
        unscaled: Whether the gradients are divided by the scale already.
        aggregated: Whether they are summed over the replicas already.
        wire_dtype: The dtype in which they are summed over the replicas, or None for
            their own.
        by_variable: What counts overflows by variable, or None.
        spikes: The `Spikes` that may skip a finite step too, or None.
        schedules: The `Schedules` of the inner optimizer.
    """

    def __init__(
        self,
        scaler,
        inner,
        gradients,
        variables,
        *,
        unscaled,
        aggregated,
        wire_dtype,
        by_variable,
        spikes,
        schedules,
    ):
        self._scaler = scaler
        self._inner = inner
        self._gradients = gradients
        self._variables = variables
        self._unscaled = unscaled
        self._aggregated = aggregated
        self._wire_dtype = wire_dtype
        self._scale = None if unscaled else scaler.divisor
        self._window: Any = None
        if inner.gradient_accumulation_steps:
            self._window = Window(inner, variables, self._scale)
        self._plan = fused.Plan(inner, self._scale, gradients, variables)
        self._overflows = Overflows(scaler, variables, by_variable)
        self._spikes = spikes
        self._schedules = schedules
        self._loss = spikes.noted() if spikes and self._window is None else None

    def run(self):
        """Take the step. Called in a replica, whose gradients these are.

        Raises:
            ValueError: As `LossScaleOptimizer.apply`.
        """
        accumulates = self._window is not None
        distribute.check_apply(self._scaler.scale.value, accumulates)
        distribute.meet(self._take, self._gradients, self._loss)

    def _take(self, devices, gradients, loss):
        if self._window is None:
            outcome = self._update_if_good(devices, gradients, loss)
        else:
            outcome = self._accumulate(devices, gradients)
        self._scaler.advance(outcome.verdict, outcome.spike)

    def _accumulate(self, devices, gradients):
        """Collect a micro-batch, or close the window and update with its mean."""
        window = self._window

        def close():
            mean = devices.run(window.mean, gradients)
            return self._update_if_good(devices, mean).facts()

        def collect():
            verdict, whose = self._judge_each(devices, gradients)
            devices.cond(
                verdict.finite,
                lambda: distribute.no_value(devices.run(window.collect, gradients)),
                functools.partial(self._overflows.count, whose),
            )
            spike = ops.convert_to_tensor(False) if self._spikes else None
            return Outcome(verdict, spike).facts()

        facts = devices.cond(window.is_last(), close, collect)
        spike = facts.pop() if self._spikes else None
        return Outcome(Verdict(*facts), spike)

    def _update_if_good(self, devices, gradients, loss=None):
        """Aggregate and judge; update if all is good. Return the `Outcome`."""
        if self._aggregated:
            verdict, whose = self._judge_each(devices, gradients)
            count = functools.partial(self._overflows.count, whose)
        else:
            own, gradients = gradients, devices.run(self._sum, gradients)
            total = devices.first(gradients)
            verdict = self._scaler.judge(total, self._unscaled)
            whose = self._overflows.whose(devices, verdict.finite, own)
            count = functools.partial(self._overflows.count, whose, total)
        spike = None
        if self._spikes:
            spike = self._judge_spike(devices, verdict, gradients, loss)
        outcome = Outcome(verdict, spike)
        good = outcome.is_good()
        if self._window is None and self._plan.unconditional:
            self._update(devices, gradients, good)
            if self._overflows.are_counted():
                devices.cond(verdict.finite, distribute.no_value, count)
        else:
            update = functools.partial(self._update, devices, gradients)
            skip = functools.partial(self._skip, devices, count, spike)
            devices.cond(good, update, skip)
        return outcome

    def _skip(self, devices, count, spike):
        """Count overflows; of a spike, which all of a window made, drop the window."""
        count()
        if self._window is not None and spike is not None:
            devices.run(self._window.discard_if, spike)

    def _judge_spike(self, devices, verdict, gradients, loss):
        """Return whether the step is a spike, the same on all replicas."""
        if self._aggregated:
            norm = ops.max(devices.gather(devices.run(self._norm, gradients)))
        else:
            norm = self._norm(devices.first(gradients))
        if loss is not None:
            loss = ops.sum(devices.gather(loss))
        return self._spikes.judge(verdict.finite, loss, norm)

    def _norm(self, gradients):
        """Return the norm of ``gradients``, unscaled."""
        pairs = zip(gradients, self._variables, strict=True)
        norm = numerics.norm([g for g, v in pairs if not kinds.overwrites(v)])
        return norm if self._scale is None else ops.divide(norm, self._scale)

    def _sum(self, gradients):
        """Return ``gradients`` summed over the replicas. Called in each replica."""
        overwrites = map(kinds.overwrites, self._variables)
        return distribute.sum_over_replicas(gradients, overwrites, self._wire_dtype)

    def _judge_each(self, devices, gradients):
        """Judge every replica's own gradients.

        Returns:
            The verdict on all of them together, and a function that says whose are not
            finite, as of `Overflows.whose`.
        """

        def facts(gradients):
            verdict = Outcome(self._scaler.judge(gradients, self._unscaled)).facts()
            return ops.stack([ops.cast(fact, "float32") for fact in verdict])

        of_all = devices.gather(devices.run(facts, gradients))
        finite, *largest = ops.unstack(of_all, axis=1)
        finite = ops.greater(finite, 0)
        verdict = Verdict(ops.all(finite), *(ops.max(column) for column in largest))
        if self._overflows.are_by_variable():
            whose = self._overflows.whose(devices, verdict.finite, gradients)
            return verdict, whose
        return verdict, lambda: ops.logical_not(finite)

    def _update(self, devices, gradients, finite=None):
        """Update on each replica, unless ``finite`` is given and false."""
        with (
            self._schedules.in_update(),
            private.optimizers.update_only(self._inner),
            self._plan.in_effect(finite),
        ):
            devices.run(self._apply, gradients)

    def _apply(self, gradients):
        """Call the inner optimizer. Called in each replica."""
        if private.tracing.in_xla():
            gradients = list(map(private.tracing.cast_here, gradients))
        if not self._plan.divides:
            gradients = numerics.unscale_all(gradients, self._variables, self._scale)
        window = self._window
        with window.closing() if window else contextlib.nullcontext():
            self._inner.apply(gradients, self._variables)


class Outcome(NamedTuple):
    """What is known of a step.

    Attributes:
        verdict: The `Verdict` on its gradients.
        spike: Scalar bool tensor: whether it is skipped as a spike; None if no step is.
    """

    verdict: Verdict
    spike: Any = None

    def is_good(self):
        """Return whether the step is applied, a scalar bool tensor."""
        if self.spike is None:
            return self.verdict.finite
        return ops.logical_and(self.verdict.finite, ops.logical_not(self.spike))

    def facts(self):
        """Return the tensors as a list, without the None that no branch can return."""
        return [fact for fact in (*self.verdict, self.spike) if fact is not None]
