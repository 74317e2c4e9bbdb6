"""Whose gradients were not finite: which replica's, and which variables'.

All of it happens in the branch of a step that is not finite. Only what enters that
branch is made ready before it.
"""

import functools

from keras import ops

from keras_mp import distribute, kinds, numerics, private, stacks


class Overflows:
    """What one step counts if its gradients are not finite.

    Args:
        scaler: The `Scaler`, which counts by replica.
        variables: The variables that the step's gradients belong to.
        by_variable: The `Counts` that count by variable, or None.
    """

    def __init__(self, scaler, variables, by_variable):
        self._scaler = scaler
        self._variables = variables
        self._by_variable = by_variable
        self._has_replicas = distribute.replicas() > 1

    def are_counted(self):
        """Return whether anything is counted in a step that is not finite."""
        return self._has_replicas or self.are_by_variable()

    def are_by_variable(self):
        """Return whether the variables are looked at one by one."""
        return self._by_variable is not None

    def whose(self, devices, all_finite, own):
        """Return a function that says whose gradients are not finite.

        Args:
            devices: The devices on which the step runs.
            all_finite: Scalar bool tensor, the verdict on all gradients. Only if it is
                false are they looked at.
            own: Every replica's own gradients, before they are summed.

        Returns:
            A function for the branch of a bad step. It returns a bool tensor of shape
            (replicas,), or (replicas, variables) if they `are_by_variable`. None if
            nothing is counted.
        """
        if self._has_replicas:
            finite = devices.run(self._finite_unless, all_finite, own)
            return lambda: ops.equal(devices.gather(finite), 0)
        if not self.are_by_variable():
            return None
        look = self._looking(own)
        return lambda: ops.equal(devices.gather(look()), 0)

    def count(self, whose, total=None):
        """Count, in the branch of a bad step.

        Args:
            whose: A function as of `whose`.
            total: The gradients summed over the replicas, if they were. A variable of
                which only the sum is not finite counts for every replica.
        """
        if not self.are_counted():
            return
        bad = whose()
        if not self.are_by_variable():
            self._scaler.count_overflows(bad)
            return
        if self._has_replicas:
            self._scaler.count_overflows(ops.any(bad, axis=1))
            if total is not None:
                sum_is_bad = ops.equal(self._looking(total)(), 0)
                bad = ops.where(ops.any(bad, axis=0), bad, sum_is_bad)
        self._by_variable.add(bad)

    def _finite_unless(self, all_finite, gradients):
        """Return 1.0 if ``gradients``, of one replica, are finite, else 0.0.

        By variables, one for each. They are looked at only if ``all_finite`` is false.
        """
        if self.are_by_variable():
            good = self._by_variable.all_good
        else:
            good = functools.partial(ops.convert_to_tensor, 1.0)
        return private.kernels.cond(all_finite, good, self._looking(gradients))

    def _looking(self, gradients):
        """Return a function that looks at ``gradients``, as `_finite_unless` does."""
        piles = self._piles(kinds.dense_parts(gradients))
        if not self.are_by_variable():
            stacked = [stack for _, stack in piles]
            return lambda: ops.cast(numerics.every_finite(stacked), "float32")
        pairs = zip(self._variables, gradients, strict=True)
        present = [variable for variable, gradient in pairs if gradient is not None]
        return functools.partial(self._by_variable.judge, present, piles)

    def _piles(self, parts):
        """Return ``parts`` as few tensors, which stay in memory until the verdict."""
        narrow = private.tracing.before_cast
        if self._has_replicas:
            piles = stacks.small_ones_stacked(parts)
            return [(indices, narrow(stack)) for indices, stack in piles]
        # On one device the update keeps the parts in any case: in XLA the narrow ones.
        if private.tracing.in_xla():
            return [((index,), narrow(part)) for index, part in enumerate(parts)]
        return stacks.small_ones_stacked(parts)
