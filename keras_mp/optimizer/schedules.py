"""Where a learning-rate schedule is, which skipped steps may move on or not.

A schedule is called with the number of updates. To move on in skipped steps too, it is
called with those added: the count of updates itself stays, because Adam's correction of
its first moments, and averages of weights, begin with it.
"""

from keras import ops

from keras_mp import private


class Schedules:
    """The learning-rate schedules of an inner optimizer, one or those of its parts.

    Args:
        inner: A Keras optimizer.
        scaler: The `Scaler`, which counts skipped steps.
        on_skip: ``"hold"`` or ``"advance"``.
    """

    def __init__(self, inner, scaler, on_skip):
        self._inner = inner
        self._scaler = scaler
        self.on_skip = on_skip

    def learning_rate(self):
        """Return the learning rate of the next update.

        With accumulation Keras would call a schedule with the number of micro-batches.
        """
        schedule = private.optimizers.learning_rate_schedule(self._inner)
        if schedule is None:
            return self._inner.learning_rate
        updates = self._inner.iterations
        if self.on_skip == "hold":
            return schedule(updates)
        window = self._inner.gradient_accumulation_steps or 1
        position = ops.mod(private.optimizers.step_counter(self._inner).value, window)
        return schedule(updates + self._windows(window, position))

    def in_update(self):
        """Return a context for the inner optimizer's update, on all replicas.

        With accumulation, for the update that closes a window.
        """
        window = self._inner.gradient_accumulation_steps or 1
        return self.moved_on(lambda: self._windows(window, window - 1))

    def moved_on(self, steps):
        """Return a context in which schedules are ``steps()`` further, if they may be.

        Args:
            steps: A function that returns a scalar int tensor.
        """
        advances = self.on_skip == "advance"
        return private.optimizers.schedules_moved_on(self._inner, steps, advances)

    def _windows(self, window, position):
        """Return how many windows more there are with the skipped micro-batches."""
        return ops.floor_divide(self._scaler.skipped + position, window)
