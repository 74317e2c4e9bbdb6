"""`ScaleGuard`: acts when the scale has collapsed or too many steps are skipped."""

import collections
import warnings
from typing import Any, NamedTuple

import keras

from keras_mp import private
from keras_mp.callbacks.skips import optimizers_of
from keras_mp.diagnosis import diagnose
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.scaling.base import checked_choice, checked_count, checked_number

_ACTIONS = ("warn", "stop", "raise", "lower_learning_rate")

_COLLAPSED, _OVER_BUDGET, _IN_A_ROW = "collapsed", "over budget", "in a row"

_ADVICE = (
    "Look for a learning rate that diverges, for inf or NaN in the data, or for a "
    "layer that needs float32."
)

_SCHEDULE = (
    "ScaleGuard(action='lower_learning_rate') cannot lower the learning rate of "
    "optimizer '{name}', which follows a schedule, {schedule}. Give the optimizer a "
    "number, or use action='stop' or action='warn'."
)


class ScaleGuard(keras.callbacks.Callback):
    """Warns, stops, raises or lowers the learning rate when loss scaling goes wrong.

    Three things can be wrong: the scale has *collapsed*, fallen to its floor, where
    gradients too small for float16 vanish; *too many steps are skipped*, more than a
    share of the last ``window`` steps; or, if asked, *too many in a row*. It looks at
    the first two once ``window`` steps are done, so that a first scale that is too
    large may fall. In bfloat16 there is no scale to collapse.

    It acts once, and again only after what was wrong has been right in between; but a
    learning rate is lowered again after each further ``window`` steps of which too many
    are skipped. Every action comes with a message that states the numbers: a warning,
    or the RuntimeError of ``"raise"``. Under a strategy all workers do the same,
    because they count the same.

    It reads ``optimizer.stats()`` ten times in ``window`` steps, and waits for the
    device then; with ``max_in_row``, also when a row may have become so long, which is
    once in ``max_in_row`` steps while none is skipped. Like any callback with a method
    for batches, it has Keras fetch the logs after each step, or after each
    ``steps_per_execution`` of them.

    Args:
        action: ``"warn"``; ``"stop"``, which ends ``fit``; ``"raise"``, which ends it
            with a RuntimeError; or ``"lower_learning_rate"``, which multiplies it by
            ``factor``.
        max_skipped: Share of the last ``window`` steps that may be skipped, between 0
            and 1.
        max_in_row: None; or how many steps may be skipped in a row, from the first step
            on: the search for a first scale may skip 15, from 2**15 to 1. A longer row
            is noticed in its first step too many, or at the end of its execution of
            ``steps_per_execution``.
        min_scale: The scale counts as collapsed at this number and below, if it began
            above. Defaults to the ``min_scale`` of the optimizer's rule.
        window: How many steps are looked at, 10 or more. With
            ``gradient_accumulation_steps`` micro-batches count.
        factor: What the learning rate is multiplied by, between 0 and 1.
        batch: None; or ``(x, y)``, one batch as for `keras_mp.diagnose`, whose report
            on it is added to the message. It takes as long as some ten steps.

    Raises:
        TypeError: A number is none.
        ValueError: An argument is out of its range. In ``fit``: the learning rate that
            is to be lowered follows a schedule.
        RuntimeError: In ``fit``, with ``"raise"``: loss scaling has gone wrong.

    Example:

    >>> guard = ScaleGuard("stop", max_skipped=0.25)
    >>> history = model.fit(x, y, verbose=0, callbacks=[guard])
    >>> guard.incidents
    []

    Attributes:
        incidents: The messages of this ``fit``, as a list of strings.
    """

    def __init__(
        self,
        action: str = "warn",
        *,
        max_skipped: float = 0.1,
        max_in_row: int | None = None,
        min_scale: float | None = None,
        window: int = 200,
        factor: float = 0.5,
        batch: tuple[Any, ...] | None = None,
    ) -> None:
        super().__init__()
        self.action: str = checked_choice("ScaleGuard", "action", action, _ACTIONS)
        self.max_skipped: float = checked_number(
            "ScaleGuard", "max_skipped", max_skipped, below=1.0
        )
        if max_in_row is not None:
            max_in_row = checked_count("ScaleGuard", "max_in_row", max_in_row)
        self.max_in_row: int | None = max_in_row
        if min_scale is not None:
            min_scale = checked_number("ScaleGuard", "min_scale", min_scale)
        self.min_scale: float | None = min_scale
        self.window: int = checked_count("ScaleGuard", "window", window)
        if self.window < 10:
            raise ValueError(
                f"ScaleGuard(window={window!r}): `window` must be a whole number of "
                "steps, 10 or more, such as 200."
            )
        self.factor: float = checked_number("ScaleGuard", "factor", factor, below=1.0)
        if batch is not None and not isinstance(batch, tuple | list):
            raise TypeError(
                "ScaleGuard(batch=...) needs a tuple (x, y), one batch as for "
                f"keras_mp.diagnose. Got a {type(batch).__name__}."
            )
        self.batch: Any = batch
        self.incidents: list[str] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.incidents = []
        self._steps = self._read_at = 0
        self._longest_row = 0
        self._watched = [
            (each, _Window(self.window, each.stats()))
            for each in optimizers_of(self.model)
            if isinstance(each, LossScaleOptimizer)
        ]
        if not self._watched:
            warnings.warn(
                f"ScaleGuard has nothing to guard: model '{self.model.name}' has no "
                "keras_mp.LossScaleOptimizer. keras_mp.compile(model, ...) gives one "
                "to models in 16 bits.",
                stacklevel=2,
            )
        if self.action == "lower_learning_rate":
            for optimizer, _ in self._watched:
                _check_rate(optimizer)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch_start = self._steps

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        # Under steps_per_execution, `batch` is the last of several.
        self._steps = self._epoch_start + batch + 1
        every = self.window // 10
        if self._steps // every > self._read_at // every or self._row_may_be_long():
            self._look()

    def _row_may_be_long(self) -> bool:
        """Return whether a row of skipped steps may be too long by now."""
        if self.max_in_row is None:
            return False
        row = self._longest_row + self._steps - self._read_at
        return row > self.max_in_row

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._read_at < self._steps:
            self._look()

    def _look(self) -> None:
        self._read_at = self._steps
        self._longest_row = 0
        for optimizer, window in self._watched:
            reading = window.add(optimizer.stats())
            self._longest_row = max(self._longest_row, reading.in_a_row)
            wrong = self._wrong(optimizer, reading)
            lowers = self.action == "lower_learning_rate"
            acts = wrong - window.known or (lowers and _OVER_BUDGET in wrong)
            if not reading.is_full:  # the rest is not known anew
                wrong |= window.known - {_IN_A_ROW}
            window.known = wrong
            if acts:
                window.begin_again()
                self._act(optimizer, reading)

    def _wrong(self, optimizer: LossScaleOptimizer, reading: "_Reading") -> set[str]:
        """Return what is wrong, as a set of names."""
        wrong = set()
        if self.max_in_row is not None and reading.in_a_row > self.max_in_row:
            wrong.add(_IN_A_ROW)
        if not reading.is_full:
            return wrong
        if reading.skipped > self.max_skipped * reading.steps:
            wrong.add(_OVER_BUDGET)
        if _has_collapsed(optimizer, reading.scale, self._floor(optimizer)):
            wrong.add(_COLLAPSED)
        return wrong

    def _floor(self, optimizer: LossScaleOptimizer) -> float:
        if self.min_scale is not None:
            return self.min_scale
        return getattr(optimizer.scaling, "min_scale", 0.0)

    def _act(self, optimizer: LossScaleOptimizer, reading: "_Reading") -> None:
        if self.action == "stop":
            self.model.stop_training = True
            done = "Training stops."
        elif self.action == "lower_learning_rate":
            old = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            optimizer.learning_rate = self.factor * old
            done = f"The learning rate falls from {old:g} to {self.factor * old:g}."
        else:
            done = ""
        said = [self._skipped(reading), self._scale(optimizer, reading.scale), done]
        said += [_ADVICE, self._diagnosis()]
        message = f"ScaleGuard: optimizer '{optimizer.name}' " + " ".join(
            filter(None, said)
        )
        self.incidents.append(message)
        if self.action == "raise":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    def _skipped(self, reading: "_Reading") -> str:
        """Return how many steps were skipped."""
        if self.max_in_row is not None and reading.in_a_row > self.max_in_row:
            spikes = " or were spikes" if reading.spikes else ""
            return (
                f"skipped the last {reading.in_a_row} steps in a row, whose gradients "
                f"were not finite{spikes}."
            )
        share = 100 * reading.skipped / reading.steps
        spikes = f"; {reading.spikes} of them were spikes" if reading.spikes else ""
        return (
            f"skipped {reading.skipped} of the last {reading.steps} steps "
            f"({share:.3g}%), whose gradients were not finite{spikes}."
        )

    def _scale(self, optimizer: LossScaleOptimizer, scale: float) -> str:
        """Return what the scale is, if there is one."""
        if optimizer.scaling.only_checks:
            return ""
        floor = self._floor(optimizer)
        if not _has_collapsed(optimizer, scale, floor):
            return f"The loss scale is {scale:g}."
        return (
            f"The loss scale is {scale:g}, at its floor of {floor:g}: no smaller one "
            "can help, and gradients below 6e-8 vanish in float16."
        )

    def _diagnosis(self) -> str:
        """Return the report on the batch, or how to get one."""
        if self.batch is None:
            return "keras_mp.diagnose(model, x, y) with one batch names the layer."
        try:
            return str(diagnose(self.model, *self.batch))
        except Exception as error:  # training goes on, whatever the batch was
            return f"keras_mp.diagnose(model, *batch) failed: {error}"


class _Reading(NamedTuple):
    """The last steps, and what is now.

    Attributes:
        steps: How many steps.
        skipped: How many of them were skipped.
        spikes: How many of those as spikes.
        is_full: Whether ``steps`` is a whole window.
        in_a_row: How many of the very last steps were skipped, one after the other.
        scale: The loss scale.
    """

    steps: int
    skipped: int
    spikes: int
    is_full: bool
    in_a_row: int
    scale: float


class _Window:
    """The last steps of one optimizer, by readings of its counters.

    Args:
        length: How many steps.
        stats: The counters before the first of them.

    Attributes:
        known: What was wrong at the last reading, a set of names.
    """

    def __init__(self, length: int, stats: dict[str, Any]) -> None:
        self._length = length
        self._readings: collections.deque[dict[str, Any]] = collections.deque([stats])
        self.known: set[str] = set()

    def add(self, stats: dict[str, Any]) -> _Reading:
        """Return what the last steps were."""
        readings = self._readings
        if stats["steps"] < readings[-1]["steps"]:
            readings.clear()  # an older state was loaded
        readings.append(stats)
        while len(readings) > 2 and self._steps_since(readings[1]) >= self._length:
            readings.popleft()
        skipped, spikes = (
            stats.get(name, 0) - readings[0].get(name, 0)
            for name in ("skipped", "spikes")
        )
        steps = self._steps_since(readings[0])
        in_a_row, scale = stats["consecutive_skipped"], stats["scale"]
        return _Reading(steps, skipped, spikes, steps >= self._length, in_a_row, scale)

    def begin_again(self) -> None:
        """Count from the last reading on."""
        while len(self._readings) > 1:
            self._readings.popleft()

    def _steps_since(self, reading: dict[str, Any]) -> int:
        return self._readings[-1]["steps"] - reading["steps"]


def _has_collapsed(optimizer: LossScaleOptimizer, scale: float, floor: float) -> bool:
    """Return whether the scale has fallen to ``floor``, and did not begin there."""
    return scale <= floor < optimizer.initial_scale


def _check_rate(optimizer: LossScaleOptimizer) -> None:
    schedule = private.optimizers.learning_rate_schedule(optimizer.inner_optimizer)
    if schedule is not None:
        name = type(schedule).__name__
        raise ValueError(_SCHEDULE.format(name=optimizer.name, schedule=name))
