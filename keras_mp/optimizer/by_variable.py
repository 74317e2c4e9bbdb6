"""Overflows counted by variable, if that was asked for.

Only the branch of a step that is not finite counts, so a good step does nothing for it.
"""

import keras
import numpy as np
from keras import ops

from keras_mp import distribute, numerics, private

_OFF = (
    "LossScaleOptimizer.overflows_by_variable() needs counts, and none are kept. Call "
    "`optimizer.track_overflows()` before the first training step."
)

_TRACED_BEFORE = (
    "LossScaleOptimizer.overflows_by_variable() has no counts: the training step was "
    "traced before `track_overflows()` was called, so its graph does not count. Call "
    "`track_overflows()` before the first step; or trace the step again, for `fit` by "
    "`model.make_train_function(force=True)`."
)

_STATELESS = (
    "LossScaleOptimizer.stateless_apply() cannot count overflows by variable, because "
    "the counts are no part of `optimizer.variables`. Use `apply`, or do not call "
    "`track_overflows()`."
)


class Tracking:
    """Whether an optimizer counts overflows by variable, and its counts."""

    def __init__(self):
        self._is_on = False
        self._counts = None
        self._traced_without = False

    def start(self):
        """Count from the next step that is traced, or run eagerly."""
        self._is_on = True

    def of_step(self, inner):
        """Return the counts for a step that is made now, or None if none are kept.

        Called in each replica, because the first call creates a variable.

        Args:
            inner: The built Keras optimizer that updates.
        """
        if not self._is_on:
            self._traced_without |= private.tracing.is_traced()
        elif self._counts is None:
            distribute.run_once(lambda: self._create(inner))
        return self._counts

    def _create(self, inner):
        self._counts = Counts(inner)

    def check_stateless(self):
        """Refuse a step that keeps no variables.

        Raises:
            RuntimeError: The counts were asked for.
        """
        if self._is_on:
            raise RuntimeError(_STATELESS)

    def read(self):
        """Return the counts by path, of the variables that have any.

        Raises:
            RuntimeError: There are none, or the step does not count.
        """
        if not self._is_on:
            raise RuntimeError(_OFF)
        if self._counts is not None:
            return self._counts.read()
        if self._traced_without:
            raise RuntimeError(_TRACED_BEFORE)
        return {}


class Counts:
    """Counts by replica and variable. They are no part of the optimizer's variables.

    So what is saved of an optimizer is the same with them and without.

    Args:
        inner: A built Keras optimizer. Called once for all replicas.
    """

    def __init__(self, inner):
        self._inner = inner
        self._variables = private.optimizers.variables_of(inner)
        self._counts = keras.Variable(
            initializer="zeros",
            shape=(distribute.replicas(), len(self._variables)),
            dtype="int32",
            trainable=False,
            aggregation="none",
            name="overflows_by_variable",
        )

    def all_good(self):
        """Return what `judge` returns if every gradient is finite."""
        return ops.ones((len(self._variables),), "float32")

    def judge(self, variables, piles):
        """Return for each variable of the optimizer whether its gradient is finite.

        Args:
            variables: The variables that have a gradient.
            piles: Their gradients, as of `stacks.small_ones_stacked`.

        Returns:
            A float32 tensor of shape (variables of the optimizer,): 0 for those whose
            gradient holds an inf or a NaN, 1 for all others.
        """
        places = private.optimizers.places_of(self._inner, variables)
        finite = dict(zip(places, numerics.each_finite(piles), strict=True))
        good = ops.convert_to_tensor(True)
        every = [finite.get(place, good) for place in range(len(self._variables))]
        return ops.cast(ops.stack(every), "float32")

    def add(self, overflowed):
        """Add 1 where the bool tensor ``overflowed`` (replicas, variables) is true."""
        self._counts.assign_add(ops.cast(overflowed, self._counts.dtype))

    def read(self):
        """Return a list with a count for each replica, by path, where any is not 0."""
        counts = np.asarray(ops.convert_to_tensor(self._counts))
        found = {}
        for variable, column in zip(self._variables, counts.T, strict=True):
            if column.any():
                path = getattr(variable, "path", variable.name)
                found[path] = found.get(path, 0) + column
        return {path: column.tolist() for path, column in found.items()}
