"""`RetrySkipped`: trains on the batch of a skipped step again."""

from __future__ import annotations

import warnings
from typing import Any

from keras_mp import distribute
from keras_mp.callbacks.skips import has_scale, optimizers_of
from keras_mp.recording import BatchCallback
from keras_mp.scaling import StaticLossScale
from keras_mp.scaling.base import checked_count

_NOTHING = (
    "RetrySkipped has nothing to do: the optimizer of model '{model}' is {optimizer}, "
    "whose loss scale does not fall. keras_mp.compile(model, ...) gives models in "
    "float16 one that does; a model in bfloat16 or float32 needs none."
)

_SEVERAL = (
    "RetrySkipped needs a model with one optimizer, and model '{model}' holds {count}. "
    "One that is not skipped would update its weights twice. Leave the callback out."
)


class RetrySkipped(BatchCallback):
    """Trains on a batch again whose step was skipped, at the scale that has fallen.

    So no data is lost to the search for the loss scale. A skipped step changes nothing
    in the model, so a batch meets the weights, statistics and random numbers that it
    would have met with the lower scale from the start. Metrics and logs count it once;
    the counters of the optimizer count each try, and so does a learning-rate schedule
    under ``on_skip="advance"``. A micro-batch that is dropped from a window of
    gradient accumulation gets into it.

    A batch is tried again only if its scale fell: not if its loss is inf or NaN, which
    no scale can help, if it is a spike, or at the floor. One with a finite loss and a
    NaN in its gradients has the scale fall with each try.

    After each step it reads five numbers, which waits for the device; more after one
    that is skipped. Steps of ``steps_per_execution`` are made one by one. Under a
    strategy all workers do the same. It needs `keras_mp.compile`.

    Args:
        times: How often a batch is tried again at most.

    Raises:
        ValueError: ``times`` is less than 1. In ``fit``: the model has several
            optimizers.
        TypeError: ``times`` is no whole number.

    Example:

    >>> keras_mp.compile(model, "adam", "mse", scaling="dynamic")
    >>> retry = keras_mp.callbacks.RetrySkipped(times=15)
    >>> history = model.fit(x, y, verbose=0, callbacks=[retry])
    >>> retry.retried, retry.rescued
    (0, 0)

    Attributes:
        retried: How many batches of this ``fit`` were tried again.
        rescued: How many of them were applied in the end.
    """

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        self.times: int = checked_count("RetrySkipped", "times", times)
        self.retried: int = 0
        self.rescued: int = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.retried = self.rescued = 0
        self._tries, self._again = 0, False
        self._optimizer: Any = self.model.optimizer
        count = len(optimizers_of(self.model))
        if count > 1:
            raise ValueError(_SEVERAL.format(model=self.model.name, count=count))
        if not has_scale(self.model) or isinstance(
            self._optimizer.scaling, StaticLossScale
        ):
            said = _NOTHING.format(model=self.model.name, optimizer=self._optimizer)
            warnings.warn(said, stacklevel=2)
            return
        super().on_train_begin(logs)
        self._counts = self._optimizer.step_counts()
        self._losses = self._nonfinite_losses()

    def after_step(self, step: int, data: Any, logs: Any) -> None:
        before, now = self._counts, self._optimizer.step_counts()
        self._counts = now
        applied, skipped, fell = (
            now[name] > before[name] for name in ("applied", "skipped", "backoffs")
        )
        helps = skipped and self._loss_is_finite() and fell and not applied
        self._again = helps and self._tries < self.times
        self.retried += self._again and not self._tries
        self.rescued += applied and self._tries > 0
        self._tries = self._tries + 1 if self._again else 0

    def again(self) -> bool:
        return self._again

    def _loss_is_finite(self) -> bool:
        """Return whether the last step's loss was finite, on all machines."""
        before, self._losses = self._losses, self._nonfinite_losses()
        finite = float(self._losses == before)
        return distribute.smallest_over_workers(self.model, finite) > 0

    def _nonfinite_losses(self) -> float:
        return self._optimizer.stats()["nonfinite_losses"]
