"""Gradient accumulation: one update from the mean over a window of micro-batches.

A window closes when it holds N micro-batches with finite gradients. A micro-batch that
overflows changes nothing but the scale, and another one takes its place: an update is
always by the mean of exactly N. The sums are of unscaled gradients, because the scale
may change between two micro-batches. Each replica has sums of its own, and only the
mean crosses the network.
"""

import contextlib

from keras import ops

from keras_mp import kinds, numerics, private


class Window:
    """The window of an inner optimizer that has ``gradient_accumulation_steps``.

    Sums and position are Keras's own variables of that optimizer, and so are saved
    and loaded with it: ``_iterations`` counts clean micro-batches.

    Args:
        inner: A built Keras optimizer.
        variables: The variables whose gradients the methods are given.
        scale: Scalar that the gradients are scaled by, or None if they are not.
    """

    def __init__(self, inner, variables, scale):
        self._inner = inner
        self._steps = inner.gradient_accumulation_steps
        self._micro_batches = private.optimizers.step_counter(inner)
        self._sums = private.optimizers.accumulators(inner, variables)
        self._variables = variables
        self._scale = scale

    def is_last(self):
        """Return a scalar bool tensor: a clean micro-batch would close the window."""
        position = ops.mod(self._micro_batches.value, self._steps)
        return ops.equal(position, self._steps - 1)

    def collect(self, gradients):
        """Add a clean micro-batch to the sums. Called in a replica."""
        for total, gradient, variable in self._present(gradients):
            if kinds.overwrites(variable):
                total.assign(ops.maximum(total, gradient))
            else:
                unscaled = numerics.unscale(gradient, self._scale)
                self._inner.assign_add(total, unscaled)
        self._micro_batches.assign_add(1)

    def mean(self, gradients):
        """Return the window's mean, with this micro-batch, scaled as ``gradients`` are.

        Called in a replica; None stays None.
        """
        means = {
            id(variable): self._mean(total, gradient, variable)
            for total, gradient, variable in self._present(gradients)
        }
        return [means.get(id(variable)) for variable in self._variables]

    def _mean(self, total, gradient, variable):
        if kinds.overwrites(variable):
            return ops.maximum(total, gradient)
        if self._scale is not None:
            total = ops.multiply(total, self._scale)
        return ops.divide(ops.add(total, gradient), self._steps)

    @contextlib.contextmanager
    def closing(self):
        """Let the optimizer see itself as many updates old, and start a new window.

        Learning-rate schedules and bias corrections then do what they would do with
        batches N times the size. Called in a replica, around the update.
        """
        counter, steps = self._micro_batches, self._steps
        counter.assign(ops.floor_divide(counter.value, steps))
        yield
        counter.assign(ops.multiply(counter.value, steps))
        for total in self._sums:
            total.assign(ops.zeros_like(total))

    def discard_if(self, condition):
        """Start a new window without an update, if ``condition`` is true.

        Args:
            condition: Scalar bool tensor. Called in a replica.
        """
        position = ops.mod(self._micro_batches.value, self._steps)
        self._micro_batches.assign_sub(ops.where(condition, position, 0))
        for total in self._sums:
            total.assign(ops.where(condition, ops.zeros_like(total), total))

    def _present(self, gradients):
        triples = zip(self._sums, gradients, self._variables, strict=True)
        return [triple for triple in triples if triple[1] is not None]
