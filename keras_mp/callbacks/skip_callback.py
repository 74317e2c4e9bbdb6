"""`SkipCallback`: a callback that is called after each skipped step."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_mp.callbacks.skip import Skip
from keras_mp.callbacks.skips import Skips, count_by_variable, has_scale, skips_of
from keras_mp.recording import BatchCallback


class SkipCallback(BatchCallback):
    """Base of callbacks that look at steps whose gradients were not finite.

    Several of them in one ``fit`` share what they find. Without loss scaling it warns
    that there is nothing to watch.
    """

    _skips: Skips | None = None

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if has_scale(model):
            count_by_variable(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._skips = None
        if has_scale(self.model):
            self._skips = skips_of(self.model)
            return
        name = type(self).__name__
        warnings.warn(
            f"{name} has nothing to watch: the model's optimizer is "
            f"{self.model.optimizer!r}, not a keras_mp.LossScaleOptimizer, and skips "
            "no step. keras_mp.compile(model, ...) gives models in float16 and "
            "bfloat16 one; float32 needs none.",
            stacklevel=2,
        )

    def after_step(self, step: int, data: Any, logs: Any) -> None:
        if self._skips is not None:
            skip = self._skips.after(step, data)
            if skip is None:
                self._after_good_step(self._skips)
            else:
                self._after_skip(skip)

    def _after_skip(self, skip: Skip) -> None:
        """Take a step that was skipped because its gradients were not finite."""

    def _after_good_step(self, skips: Skips) -> None:
        """Be called after each other step."""
