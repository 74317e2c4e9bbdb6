"""The scale, its rule's state and the counters, as variables of an optimizer."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mp import distribute, numerics, private
from keras_mp.scaling import Verdict

COUNTERS = ("applied", "skipped", "consecutive_skipped", "growths", "backoffs")

_EXHAUSTED = (
    "LossScaleOptimizer: gradients overflowed although the loss scale has already "
    "fallen to its floor (min_scale), so no smaller scale can help. Look for NaN or "
    "inf in the inputs, a learning rate that diverges, or a layer that needs float32; "
    "on_floor='hold' keeps skipping such steps instead."
)


class Scaler:
    """A scaling rule at work: it judges gradients, and sets the next scale.

    Every variable is assigned once for all replicas, from a verdict that all replicas
    share, so none needs an aggregation.

    Args:
        rule: A rule of `keras_mp.scaling`.
        optimizer: The Keras optimizer that the variables are created for.

    Attributes:
        rule: As given.
        state: The variables of the rule's state, by field, in the rule's order.
    """

    def __init__(self, rule, optimizer):
        self.rule = rule
        first = rule.init()
        # Keras's names for the state that its own class has, in its order.
        names = {"clean_steps": "step_counter", "scale": "dynamic_scale"}
        created = {
            field: _scalar(optimizer, name, getattr(first, field))
            for field, name in names.items()
        }
        self._counters = optimizer.add_variable(
            (len(COUNTERS),), dtype="int", aggregation="none", name="counters"
        )
        self._nonfinite_losses = _scalar(optimizer, "nonfinite_losses", np.int32(0))
        for field, value in first._asdict().items():
            if field not in names:
                created[field] = _scalar(optimizer, field, value)
        self.state = {field: created[field] for field in first._fields}
        replicas = distribute.replicas()
        self._overflows: Any = None
        if replicas > 1:
            self._overflows = optimizer.add_variable(
                (replicas,), dtype="int", aggregation="none", name="overflows"
            )

    @property
    def scale(self):
        """The variable that holds what the next loss is multiplied by."""
        return self.state["scale"]

    @property
    def divisor(self):
        """The variable to divide gradients by; None if the rule never scales them."""
        return None if self.rule.only_checks else self.scale

    def judge(self, gradients, unscaled):
        """Return the `Verdict` on ``gradients``, which may be divided by the scale."""
        if not self.rule.needs_largest:
            return Verdict(numerics.all_finite(gradients))
        largest = numerics.largest(gradients)
        finite = ops.isfinite(largest)
        if not unscaled:
            largest = ops.divide(largest, self.scale)
        return Verdict(finite, largest)

    def advance(self, verdict, spike=None):
        """Let the rule set the next scale, and count the step.

        Args:
            verdict: The `Verdict` on the step's gradients.
            spike: None, or a scalar bool tensor: whether the step is skipped as a
                spike. Then the rule's state stays as it is.
        """
        old = self._read_state(lambda variable: variable.value)
        new = self.rule.update(old, verdict)
        applied = verdict.finite
        if spike is not None:
            pairs = zip(old, new, strict=True)
            new = type(new)(*(ops.where(spike, *pair) for pair in pairs))
            applied = ops.logical_and(applied, ops.logical_not(spike))
        exhausted = self.rule.exhausted(old, verdict)
        grown = ops.greater(new.scale, old.scale)
        shrunk = ops.less(new.scale, old.scale)
        bad = ops.logical_not(applied)
        events = ops.stack([applied, bad, bad, grown, shrunk])
        ongoing = ops.stack([True, True, bad, True, True])
        self._counters.assign(
            self._counters * ops.cast(ongoing, self._counters.dtype)
            + ops.cast(events, self._counters.dtype)
        )
        for variable, before, after in zip(self.state.values(), old, new, strict=True):
            if after is not before:
                variable.assign(after)
        if exhausted is not False:
            private.kernels.raise_if(exhausted, _EXHAUSTED)

    def count_overflows(self, overflowed):
        """Count the replicas whose own gradients were not finite.

        Args:
            overflowed: Bool tensor of shape (replicas,).
        """
        self._overflows.assign_add(ops.cast(overflowed, self._overflows.dtype))

    def count_loss(self, nonfinite):
        """Count a step whose loss was not finite, if the bool ``nonfinite`` is true."""
        distribute.count_if_any(self._nonfinite_losses, nonfinite)

    def set_scale(self, scale):
        """Set the scale, moved into the rule's range; return it as a float."""
        self.scale.assign(scale)
        self.adopt_state()
        return _read(self.scale)

    def adopt_state(self):
        """Move a state that was read from a checkpoint into the rule's range."""
        adopted = self.rule.adopt(self._read_state(lambda each: each.numpy().item()))
        for variable, value in zip(self.state.values(), adopted, strict=True):
            variable.assign(value)

    def _read_state(self, read):
        return type(self.rule.init())(*map(read, self.state.values()))

    @property
    def skipped(self):
        """The number of steps skipped so far, as a scalar int tensor."""
        return self._counters.value[COUNTERS.index("skipped")]

    def counts(self) -> dict[str, int]:
        """Return the counters of steps as plain numbers, by name."""
        counts = private.variables.read(self._counters).tolist()
        return dict(zip(COUNTERS, counts, strict=True))

    def stats(self):
        """Return the scale and the counters as plain numbers, by name."""
        counters = self.counts()
        return {
            "scale": _read(self.scale),
            "steps": counters["applied"] + counters["skipped"],
            **counters,
            "nonfinite_losses": _read(self._nonfinite_losses),
        }

    def overflows_by_replica(self):
        """Return how often each replica's own gradients were not finite, as a list."""
        if self._overflows is not None:
            return _read(self._overflows)
        return [self.stats()["skipped"]]


def _scalar(optimizer, name, value):
    return optimizer.add_variable(
        (),
        initializer=keras.initializers.Constant(value),
        dtype="int" if isinstance(value, np.integer) else "float32",
        aggregation="none",
        name=name,
    )


def _read(variable):
    """Return the value of ``variable`` as a plain number, or a list of them."""
    return np.asarray(ops.convert_to_tensor(variable)).tolist()
