"""The rule of spikes in NumPy, from its description: a list of what was applied."""

import math

import numpy as np


class Spikes:
    """Says of one step after another whether it is a spike."""

    def __init__(self, deviations=6.0, window=128, patience=10):
        self.deviations = deviations
        self.window = window
        self.patience = patience
        self.applied = []
        self.in_a_row = 0

    def step(self, finite, loss, norm):
        """Return whether the step is a spike; ``loss`` is None if it is not known."""
        values = [math.nan if loss is None else loss, norm]
        spike = finite and self._is_above(values)
        known = [
            value for value in values if value is not values[0] or loss is not None
        ]
        if spike:
            self.in_a_row += 1
            if self.in_a_row == self.patience:
                self.applied, self.in_a_row = [], 0
        elif finite and np.isfinite(known).all():
            self.applied.append(values)
            self.in_a_row = 0
        return spike

    def _is_above(self, values):
        if len(self.applied) < self.window:
            return False
        last = np.array(self.applied[-self.window :], "float64")
        mean, deviation = last.mean(axis=0), last.std(axis=0, ddof=1)
        # A millionth of the mean is rounding.
        limits = mean + self.deviations * deviation + 1e-6 * abs(mean)
        return bool((values > limits).any())
