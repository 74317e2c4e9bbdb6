"""A `SpikeRule` at work: its state as variables of an optimizer, the loss it judges."""

import threading

import numpy as np
from keras import ops

from keras_mp import private
from keras_mp.optimizer.spike_rule import SpikeState


class Spikes:
    """What says whether a step is a spike, and counts them.

    Every variable is assigned once for all replicas, from numbers that all of them
    share, so none needs an aggregation.

    Args:
        rule: A `SpikeRule`.
        optimizer: The Keras optimizer that the variables are created for.
    """

    def __init__(self, rule, optimizer):
        self.rule = rule
        shape = rule.init().history.shape
        self._history = optimizer.add_variable(
            shape, dtype="float32", aggregation="none", name="spike_history"
        )
        # Steps in the history, the current run of spikes, all spikes.
        self._counts = optimizer.add_variable(
            (3,), dtype="int32", aggregation="none", name="spike_counts"
        )
        self._here = threading.local()

    def note(self, loss):
        """Remember the loss whose gradients are to come."""
        self._here.loss = loss

    def noted(self):
        """Return this replica's loss as a float32 scalar, once; None if not known.

        It is not if the loop never called ``scale_loss``, or did so in a function that
        ended before `apply` was called.
        """
        loss, self._here.loss = getattr(self._here, "loss", None), None
        if loss is None or not private.tracing.is_at_hand(loss):
            return None
        return ops.cast(ops.sum(loss), "float32")

    def judge(self, finite, loss, norm):
        """Return whether a step is a spike, a scalar bool tensor, and count it.

        Args:
            finite: Scalar bool tensor: whether all gradients are finite.
            loss: float32 scalar, summed over the replicas, or None.
            norm: float32 scalar, the norm of the gradients.
        """
        usable = ops.isfinite(norm)
        if loss is None:
            loss = ops.convert_to_tensor(np.nan, "float32")
        else:
            usable = ops.logical_and(usable, ops.isfinite(loss))
        values = ops.stack([loss, norm])
        recorded, in_a_row, total = ops.unstack(self._counts.value)
        state = SpikeState(ops.convert_to_tensor(self._history), recorded, in_a_row)
        spike = ops.logical_and(finite, self.rule.is_spike(state, values))
        applied = ops.logical_and(finite, ops.logical_not(spike))
        enters = ops.logical_and(applied, usable)
        after = self.rule.update(state, values, enters, spike)
        self._history.assign(after.history)
        total = total + ops.cast(spike, total.dtype)
        self._counts.assign(ops.stack([after.recorded, after.in_a_row, total]))
        return spike

    def stats(self):
        """Return how many steps were spikes, as a dict."""
        return {"spikes": int(np.asarray(ops.convert_to_tensor(self._counts))[2])}
