"""Callbacks that look at every N-th batch of ``fit``."""

from collections.abc import Callable
from typing import Any

import keras

from keras_mp import private
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.recording import Batch, BatchCallback, share
from keras_mp.scaling import StaticLossScale
from keras_mp.scaling.base import checked_count


class Looks(BatchCallback):
    """Looks at every N-th batch, before its step.

    Args:
        every: N.
        rows: How many of the first rows of a batch are looked at; None for all.
        loss: ``loss(y, y_pred)`` instead of the loss of ``compile``; or None.

    Raises:
        ValueError: ``every`` or ``rows`` is less than 1.
        TypeError: One is no whole number, or ``loss`` is no function.
    """

    def __init__(
        self,
        every: int = 100,
        rows: int | None = None,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.every: int = checked_count(name, "every", every)
        self.rows: int | None = None
        if rows is not None:
            self.rows = checked_count(name, "rows", rows)
        if loss is not None and not callable(loss):
            raise TypeError(
                f"{name}(loss={loss!r}): `loss` must be a function of "
                "y and y_pred or a keras.losses.Loss, or None for the loss that the "
                "model is compiled with."
            )
        self.loss: Callable[..., Any] | None = loss
        self._steps_before = self._steps = 0
        self._looked_at: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not private.layers.has_call(self.model):
            raise ValueError(
                f"{type(self).__name__} needs a model with a `call`, and class "
                f"{type(self.model).__name__} of model '{self.model.name}' has none. "
                "Leave the callback out; keras_mp.diagnose looks at the models inside "
                "it one by one."
            )
        super().on_train_begin(logs)
        self._steps_before, self._steps = self._steps, 0
        before, self._looked_at = self._looked_at, _what_graphs_depend_on(self.model)
        if self._looked_at != before:
            self.begin()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        self._steps += self._steps_before

    def before_step(self, step: int, data: Any) -> None:
        self._steps = step
        # A model of the user's own class may be built by its first step.
        if step % self.every == 0 and self.model.built:
            batch = share(self.model, data)
            self.look(self._steps_before + step, batch, _scale_of(self.model.optimizer))

    def begin(self) -> None:
        """Get ready for a model that was not looked at before, or was changed."""
        raise NotImplementedError

    def look(self, step: int, batch: Batch, scale: float) -> None:
        """Look at the batch of a step, counted over all calls of ``fit``."""
        raise NotImplementedError


def _what_graphs_depend_on(model: keras.Model) -> list[Any]:
    """Return what differs if ``model`` has to be traced anew."""
    layers = private.layers.walk(model)
    dtypes = [(layer, layer.compute_dtype, layer.trainable) for layer in layers]
    return [model.optimizer, model.loss, model.run_eagerly, *dtypes]


def _scale_of(optimizer: Any) -> float:
    if isinstance(optimizer, LossScaleOptimizer):
        return float(optimizer.stats()["scale"])
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        if not optimizer.built:
            return float(optimizer.initial_scale)
        return float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))
    return 1.0


def is_static(optimizer: Any) -> bool:
    """Return whether the loss scale of ``optimizer`` is always the same."""
    if isinstance(optimizer, LossScaleOptimizer):
        return isinstance(optimizer.scaling, StaticLossScale)
    return not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
