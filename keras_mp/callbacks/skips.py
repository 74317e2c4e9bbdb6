"""`Skips`: finds the skipped steps of a ``fit``."""

from __future__ import annotations

import collections
from typing import Any

import keras

from keras_mp import distribute
from keras_mp.callbacks.skip import Skip
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.recording import shares

#: So many of the last loss scales are kept, one for each step.
KEPT_SCALES = 1000

_SKIPS = "_keras_mp_skips"


class Skips:
    """Finds the skipped steps of a model in ``fit``.

    Args:
        model: A model with a `LossScaleOptimizer` that counts overflows by variable.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._optimizer: LossScaleOptimizer = model.optimizer
        self._grown = False
        self.begin()

    def begin(self) -> None:
        """Begin a ``fit``."""
        self._step, self._found = 0, None
        self._last: Skip | None = None
        self._counts = self._optimizer.step_counts()
        stats = self._optimizer.stats()
        self._scales = collections.deque([float(stats["scale"])], KEPT_SCALES)
        self._losses, self._spikes = _losses_and_spikes(stats)
        self._replicas = self._optimizer.overflows_by_replica()
        self._variables = self._by_variable()

    @property
    def scale(self) -> float:
        """The scale of the next step."""
        return self._scales[-1]

    def after(self, step: int, data: Any) -> Skip | None:
        """Return the `Skip` of a step that was just made; None if nothing overflowed.

        Several callbacks may ask for the same step, and get the same `Skip`. Reads one
        small tensor, which waits for the device.

        Args:
            step: The number of the step, as of `BatchCallback.after_step`.
            data: Its batch.
        """
        if step != self._step:
            self._step, self._found = step, self._look(step, data)
        return self._found

    def _look(self, step: int, data: Any) -> Skip | None:
        before, now = self._counts, self._optimizer.step_counts()
        self._counts = now
        skip = None
        if now["skipped"] > before["skipped"]:
            skip = self._skip(step, data)
        else:
            self._last = None  # and its batch
        grew, fell = (now[name] > before[name] for name in ("growths", "backoffs"))
        if grew or fell:
            self._grown = grew
            self._scales.append(float(self._optimizer.stats()["scale"]))
        else:
            self._scales.append(self._scales[-1])
        return skip

    def _skip(self, step: int, data: Any) -> Skip | None:
        before, spikes_before = self._losses, self._spikes
        stats = self._optimizer.stats()
        self._losses, self._spikes = _losses_and_spikes(stats)
        if self._spikes > spikes_before:
            return None  # skipped for another reason
        replicas, variables = (
            self._optimizer.overflows_by_replica(),
            self._by_variable(),
        )
        skip = Skip(
            self._model,
            step,
            self._counts,
            list(self._scales),
            grown=self._grown,
            loss_is_finite=self._losses == before,
        )
        here = distribute.replicas_here(self._model)
        skip.happened_on(
            [now - old for now, old in zip(replicas, self._replicas, strict=True)],
            _increases(self._variables, variables),
            dict(zip(here, shares(self._model, data), strict=True)),
        )
        # In a row of skipped steps, the 1st, 2nd, 4th, 8th ... are looked into.
        if self._last is not None and skip.in_a_row & (skip.in_a_row - 1):
            skip.looks_like(self._last)
        self._last = skip
        self._replicas, self._variables = replicas, variables
        return skip

    def _by_variable(self) -> dict[str, list[int]]:
        try:
            return self._optimizer.overflows_by_variable()
        except RuntimeError:  # of a step that does not count them
            return {}


def _losses_and_spikes(stats: dict[str, float | int]) -> tuple[float, float]:
    return stats["nonfinite_losses"], stats.get("spikes", 0)


def _increases(
    before: dict[str, list[int]], now: dict[str, list[int]]
) -> dict[str, list[int]]:
    """Return by how much the counts of variables rose, of those that did."""
    rises = {
        path: [
            new - old
            for new, old in zip(
                counts, before.get(path, [0] * len(counts)), strict=True
            )
        ]
        for path, counts in now.items()
    }
    return {path: counts for path, counts in rises.items() if any(counts)}


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers that ``model`` holds, each once."""
    values = [getattr(model, "optimizer", None), *vars(model).values()]
    found = [each for each in values if isinstance(each, keras.optimizers.Optimizer)]
    return list({id(each): each for each in found}.values())


def has_scale(model: keras.Model) -> bool:
    """Return whether the optimizer of ``model`` skips steps."""
    return isinstance(getattr(model, "optimizer", None), LossScaleOptimizer)


def count_by_variable(model: keras.Model) -> None:
    """Have the optimizer of ``model`` count overflows by variable from now on.

    A step that was traced before is traced again as ``fit`` begins.
    """
    optimizer: Any = model.optimizer
    optimizer.track_overflows()
    try:
        optimizer.overflows_by_variable()
    except RuntimeError:
        model.train_function = None


def skips_of(model: keras.Model) -> Skips:
    """Return the `Skips` of ``model``, which its callbacks share; begun anew."""
    kept = vars(model).get(_SKIPS)
    if kept is None or kept._optimizer is not model.optimizer:
        # Past `__setattr__`, by which Keras tracks what it gets.
        kept = vars(model)[_SKIPS] = Skips(model)
    kept.begin()
    return kept
