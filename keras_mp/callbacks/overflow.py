"""`Overflow`: why the gradients of one replica were not finite in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keras_mp.diagnosis import Culprit

#: So many causes, or variables, are named in a sentence.
_NAMED = 3

_VERBS = {"nan": "became NaN", "overflow": "overflowed"}


class Overflow(NamedTuple):
    """Why one replica's gradients were not finite in a step; printed, a sentence.

    Attributes:
        step: The number of the step in this ``fit``, from 1.
        replica: The number of the replica among those of all machines; None if only
            the sum over the replicas was not finite.
        scale: The loss scale of the step.
        culprits: A tuple of `keras_mp.Culprit`, first cause first. Empty if the batch
            was clean as it ran again, or could not run again.
        variables: A tuple of the paths of the variables whose gradients were not
            finite.
        rerun: How the batch did as it ran again, where no culprit says so: in words.

    Example:

    >>> import warnings
    >>> x[3] = float("nan")
    >>> monitor = keras_mp.callbacks.OverflowMonitor()
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     history = model.fit(x, y, verbose=0, callbacks=[monitor])
    >>> overflow = monitor.reports[0]
    >>> overflow.step, overflow.replica, overflow.culprits[0].phase
    (1, 0, 'input')
    """

    step: int
    replica: int | None
    scale: float
    culprits: tuple[Culprit, ...]
    variables: tuple[str, ...]
    rerun: str = ""

    def __str__(self) -> str:
        where = "" if self.replica is None else f" on replica {self.replica}"
        return f"step {self.step} skipped{where}: {self.cause}"

    @property
    def cause(self) -> str:
        """What overflowed, in words, without the step and the replica."""
        if self.culprits:
            return _listed([_in_words(each) for each in self.culprits], "; ")
        if not self.variables:
            what = "no gradient by itself was too large, only their sum"
        else:
            names = _listed([f"'{path}'" for path in self.variables], ", ")
            of = "the sums over the replicas of " if self.replica is None else ""
            what = f"{of}the gradients of {names} were not finite"
        return f"{what} ({self.rerun})" if self.rerun else what

    @property
    def advice(self) -> str:
        """The numbers that show it, and what to do; empty if there is no culprit."""
        if not self.culprits:
            return ""
        first = self.culprits[0]
        return f"{first.evidence[:1].upper()}{first.evidence[1:]}. {first.fix}."


def _listed(texts: Sequence[str], between: str) -> str:
    named = between.join(texts[:_NAMED])
    others = len(texts) - _NAMED
    return f"{named} and {others} more" if others > 0 else named


def _in_words(culprit: Culprit) -> str:
    layer, tensor, phase = culprit.layer, culprit.tensor, culprit.phase
    layer = layer.split("/", 1)[-1]  # the model's name says nothing
    verb = _VERBS.get(culprit.kind, "was wrong")
    if phase == "input":
        return f"the data of {layer} was not finite (input)"
    if phase == "weights":
        return f"the weight {tensor} of {layer} was not finite (weights)"
    if phase == "loss":
        return f"the loss {layer} {verb} (loss)"
    if tensor not in ("input", "output", "gradient"):
        tensor = f"gradient of {tensor}"
        return f"the {tensor} in {layer} {verb} ({phase})"
    return f"the {tensor} of {layer} {verb} ({phase})"
