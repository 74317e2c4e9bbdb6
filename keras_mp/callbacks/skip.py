"""`Skip`: a step that was skipped, which is looked into if asked."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from keras_mp.callbacks.overflow import Overflow
from keras_mp.diagnosis import rerun
from keras_mp.recording import Batch


class Skip:
    """One skipped step.

    Attributes:
        step: The number of the step in this ``fit``, from 1.
        scale: Its loss scale.
        grown: Whether the scale had grown as it last changed: one that has is tried,
            and the step that is skipped then is part of the rule.
        first: Whether no step was applied before it, not in earlier ``fit`` either.
        in_a_row: How many steps in a row were skipped, with this one.
        scales: The last scales, up to that of this step.
        loss_is_finite: Whether the step's loss is finite, as far as that was counted.
        shares: A dict of the number of each replica of this machine that overflowed to
            its share of the batch. Of all of them, if only their sum overflowed.
    """

    def __init__(
        self,
        model: keras.Model,
        step: int,
        counts: Mapping[str, int],
        scales: list[float],
        *,
        grown: bool,
        loss_is_finite: bool,
    ) -> None:
        self.step = step
        self.scale = scales[-1]
        self.grown = grown
        self.loss_is_finite = loss_is_finite
        self.first = not counts["applied"]
        self.in_a_row = counts["consecutive_skipped"]
        self.scales = scales
        self.shares: dict[int, Batch] = {}
        self._model = model
        self._variables: dict[int | None, tuple[str, ...]] = {}
        self._found: tuple[list[Overflow], bool] | None = None

    def happened_on(
        self,
        replicas: list[int],
        variables: dict[str, list[int]],
        here: Mapping[int, Batch],
    ) -> None:
        """Take whose gradients were not finite.

        Args:
            replicas: A count for each replica of all machines, 0 if it was finite.
            variables: A dict of the path of a variable to such counts.
            here: The batch of each replica of this machine.
        """
        bad = [number for number, count in enumerate(replicas) if count]
        if not bad:
            self._variables[None] = tuple(variables)
        for number in set(bad) & set(here):
            self._variables[number] = tuple(
                path for path, counts in variables.items() if counts[number]
            )
        self.shares = {each: here[each] for each in (bad or here) if each in here}

    def looks_like(self, earlier: Skip) -> None:
        """Take the reasons of an ``earlier`` step, if it was looked into."""
        if earlier._found is not None:
            overflows, by_scale = earlier._found
            mine = [
                each._replace(step=self.step, scale=self.scale) for each in overflows
            ]
            self._found = mine, by_scale

    @property
    def expected(self) -> bool:
        """Whether it is the overflow that dynamic scaling provokes as it grows.

        The scale had just been raised, and with a smaller one nothing overflows.
        """
        return self.grown and self.by_scale

    @property
    def of_first_scale(self) -> bool:
        """Whether no step was applied yet, because the first scale is too large."""
        return self.first and self.by_scale

    @property
    def by_scale(self) -> bool:
        """Whether the scale alone was too large: forward pass and loss are finite."""
        return self._look()[1]

    @property
    def overflows(self) -> list[Overflow]:
        """One `Overflow` for each replica of this machine that overflowed.

        The first call runs its batches again, so it has to come right after the step.
        """
        return self._look()[0]

    def _look(self) -> tuple[list[Overflow], bool]:
        if self._found is None:
            tried = [self._of_replica(each) for each in self.shares]
            by_scale = bool(tried) and all(fits for _, fits in tried)
            found = [overflow for overflow, _ in tried]
            if None in self._variables:
                found = self._of_sum(found)
            self._found = found, by_scale
        return self._found

    def _of_replica(self, number: int) -> tuple[Overflow, bool]:
        """Return the `Overflow` of a replica, and whether a smaller scale helps."""
        culprits, text = (), ""
        try:
            culprits, safe = rerun(self._model, self.shares[number], self.scale)
            fits = safe is not None
            if not culprits:
                text = "the batch was clean as it ran again, layer by layer"
        except Exception as error:  # a look at a training must not end it
            fits = self.loss_is_finite
            reason = f"{error}".strip() or type(error).__name__
            text = f"the batch could not run again: {reason.splitlines()[0]}"
        variables = self._variables.get(number, ())
        found = Overflow(self.step, number, self.scale, culprits, variables, text)
        return found, fits

    def _of_sum(self, tried: list[Overflow]) -> list[Overflow]:
        """Return what there is to say of a step in which only the sum overflowed."""
        found = [each for each in tried if each.culprits]
        variables = self._variables[None]
        only_sum = Overflow(self.step, None, self.scale, (), variables)
        return found or [only_sum]
