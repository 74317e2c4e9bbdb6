"""`OverflowMonitor`: says which layer overflowed in a skipped step."""

from __future__ import annotations

import collections
import warnings
from typing import Any

from keras_mp.callbacks.overflow import Overflow
from keras_mp.callbacks.skip import Skip
from keras_mp.callbacks.skip_callback import SkipCallback
from keras_mp.callbacks.skips import Skips
from keras_mp.scaling.base import checked_count


class OverflowMonitor(SkipCallback):
    """Warns of a skipped step, by layer, direction and replica.

    "step 1204 skipped on replica 1: the output of block_3/attention overflowed
    (forward)". A skipped step changes nothing in the model, so its batch can run again
    with the same weights and random numbers, layer by layer, at the loss scale that was
    in force. If it is clean then, as may be where XLA rounds otherwise, the variables
    are named whose gradients were not finite.

    The overflow that dynamic scaling provokes as it raises the scale is part of the
    rule: it is counted in ``expected`` and not reported. A first scale that is too
    large is reported once, when it has fallen.

    Each cause is warned of once, and at the end how often it came. In a row of skipped
    steps, the 1st, 2nd, 4th, 8th and so on run again; for those in between the causes
    of the one before are taken. It holds under strategies, where each machine reports
    its own replicas, with ``steps_per_execution``, gradient accumulation and
    ``jit_compile``. Compile with `keras_mp.compile`: without, a skipped step leaves
    other seeds, and layers that drop units may run again otherwise. Without loss
    scaling no step is skipped, and it warns that there is nothing to watch.

    After each step it reads a tensor of five numbers, which waits for the device. A
    batch that runs again takes as long as 10 to 20 steps.

    Args:
        max_reports: So many overflows are kept in ``reports`` in one ``fit``; further
            ones are counted only.

    Attributes:
        reports: A list of `Overflow`: ``step``, ``replica``, ``scale``, ``culprits``.
        expected: How many skipped steps were the rule's own.
        elsewhere: How many skipped steps only replicas of other machines were at fault
            for, which report them.
        skipped: How many steps were skipped because of an overflow.

    Raises:
        TypeError, ValueError: ``max_reports`` is not a whole number above 0.

    Example:

    >>> monitor = keras_mp.callbacks.OverflowMonitor()
    >>> history = model.fit(x, y, verbose=0, callbacks=[monitor])
    >>> monitor.skipped, monitor.expected, monitor.reports
    (0, 0, [])
    """

    def __init__(self, max_reports: int = 20) -> None:
        super().__init__()
        self.max_reports: int = checked_count(
            "OverflowMonitor", "max_reports", max_reports
        )
        self.reports: list[Overflow] = []
        self.expected: int = 0
        self.elsewhere: int = 0
        self.skipped: int = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.reports = []
        self.expected = self.elsewhere = self.skipped = 0
        self._times: collections.Counter[Any] = collections.Counter()
        self._falling: list[Skip] = []

    def _after_skip(self, skip: Skip) -> None:
        self.skipped += 1
        is_full = len(self.reports) >= self.max_reports
        if not skip.shares:
            self.elsewhere += 1
        elif is_full and not skip.grown:
            return
        elif skip.expected:
            self.expected += 1
        elif skip.of_first_scale:
            self._falling.append(skip)
        else:
            for overflow in skip.overflows:
                self._report(overflow)

    def _after_good_step(self, skips: Skips) -> None:
        if self._falling:
            self._report_first_scale("until it had fallen to")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        if self._falling:
            self._report_first_scale("so far; it is now")
        often = [
            f"on replica {replica}, {cause}: {times} times"
            for (replica, cause), times in self._times.items()
            if times > 1
        ]
        if often:
            warnings.warn(
                f"OverflowMonitor: {self.skipped} steps were skipped in this fit, of "
                f"which {self.expected} are part of loss scaling. {'; '.join(often)}.",
                stacklevel=2,
            )

    def _report(self, overflow: Overflow) -> None:
        if len(self.reports) >= self.max_reports:
            return
        self.reports.append(overflow)
        self._times[overflow.replica, overflow.cause] += 1
        if self._times[overflow.replica, overflow.cause] == 1:
            text = f"OverflowMonitor: {overflow}. {overflow.advice}"
            warnings.warn(text.strip(), stacklevel=2)
        if len(self.reports) == self.max_reports:
            warnings.warn(
                f"OverflowMonitor has kept {self.max_reports} overflows of this fit, "
                "as max_reports says. Further skipped steps are counted only.",
                stacklevel=2,
            )

    def _report_first_scale(self, how_far: str) -> None:
        """Say that the first scale was too large, once for all steps it cost."""
        skips: Any = self._skips
        first, count = self._falling[0], len(self._falling)
        cause = first.overflows[0].cause
        self._falling = []
        warnings.warn(
            f"OverflowMonitor: the first loss scale of {first.scale:g} was too large: "
            f"{count} steps were skipped {how_far} {skips.scale:g} ({cause}). They "
            f"are lost, and nothing else is wrong. Start with initial_scale="
            f"{skips.scale:g}, or have keras_mp.compile(..., scaling='calibrate') "
            "measure the first scale.",
            stacklevel=2,
        )
