"""`ScalerStats`: the loss scale and its counters in the logs of ``fit``."""

import numbers
import warnings
from typing import Any

import keras

from keras_mp.optimizer import LossScaleOptimizer


class ScalerStats(keras.callbacks.Callback):
    """Writes the loss scale and the step counters into ``logs`` during ``fit``.

    The progress bar, `History`, `CSVLogger`, `TensorBoard` and
    ``EarlyStopping(monitor="scaler_skipped", mode="min")`` then see them like any
    metric (Keras wants a ``mode`` for names that are not its own):
    ``scaler_scale``, ``scaler_steps``, ``scaler_applied``, ``scaler_skipped``,
    ``scaler_consecutive_skipped``, ``scaler_growths``, ``scaler_backoffs`` and
    ``scaler_nonfinite_losses`` (steps whose loss was inf or NaN, which the epoch's loss
    leaves out); with ``skip_spikes`` also ``scaler_spikes``. Put it before the
    callbacks that are to see them. In bfloat16 the scale is always 1. Where
    the optimizer is not a `keras_mp.LossScaleOptimizer`, as in float32, it warns once
    and writes nothing. It also warns of an epoch whose steps were all skipped, because
    the model learned nothing in it.

    Each reading waits for the device to finish the steps before it.

    Args:
        frequency: ``"epoch"`` to read once an epoch, at its end. A number N to read
            after every N-th training step, or as soon as possible after it where
            ``steps_per_execution`` runs several at once; in between and at the end of
            an epoch the logs repeat the last reading.

    Attributes:
        readings: A list of what ``optimizer.stats()`` returned at the readings of the
            last ``fit``, which `keras_mp.plot.scale` draws; of those in a row with the
            same scale and skipped steps, the first and the last.

    Raises:
        ValueError: ``frequency`` is neither ``"epoch"`` nor a whole number above 0.

    Example:

    >>> history = model.fit(x, y, verbose=0, callbacks=[ScalerStats()])
    >>> history.history["scaler_steps"]
    [1]
    """

    def __init__(self, frequency: int | str = "epoch") -> None:
        super().__init__()
        is_count = (
            isinstance(frequency, numbers.Integral)
            and not isinstance(frequency, bool)
            and frequency > 0  # pyright: ignore[reportOperatorIssue]
        )
        is_epoch = isinstance(frequency, str) and frequency == "epoch"
        if not (is_epoch or is_count):
            raise ValueError(
                f"ScalerStats(frequency={frequency!r}): `frequency` must be 'epoch' or "
                "a whole number of steps above 0, such as 100."
            )
        self.frequency: int | str = frequency
        self.readings: list[dict[str, float | int]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._last = {}
        self.readings = []
        self._steps_done = 0
        self._steps_read = 0
        self._epoch_start = 0
        if not self._scales():
            warnings.warn(
                "ScalerStats has nothing to report: the model's optimizer is "
                f"{self.model.optimizer!r}, not a keras_mp.LossScaleOptimizer. "
                "Models in 16 bits get one from keras_mp.compile(model, ...); float32 "
                "needs none, and gets one by guard=True.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch_start = self._steps_done

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        # Under steps_per_execution, `batch` is the last of several.
        self._steps_done = self._epoch_start + batch + 1
        if isinstance(self.frequency, str):
            return
        if self._steps_done // self.frequency > self._steps_read // self.frequency:
            self._read()
        self._write(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.frequency == "epoch":
            self._read()
        self._write(logs)
        self._warn_if_all_were_skipped()

    def _read(self) -> None:
        self._steps_read = self._steps_done
        if self._scales():
            stats = self.model.optimizer.stats()
            self._keep(stats)
            self._last = {f"scaler_{name}": value for name, value in stats.items()}

    def _keep(self, stats: dict[str, float | int]) -> None:
        """Add to ``readings``, without what lies between two that are the same.

        So a long ``fit`` whose every step is read keeps no more than what changed.
        """
        kept = self.readings
        same = [
            all(each[name] == stats[name] for name in ("scale", "skipped"))
            for each in kept[-2:]
        ]
        if same == [True, True]:
            kept.pop()
        kept.append(stats)

    def _warn_if_all_were_skipped(self) -> None:
        steps = self._steps_done - self._epoch_start
        skipped = self._last.get("scaler_consecutive_skipped", 0)
        if skipped >= steps > 0 and self._steps_read == self._steps_done:
            spikes = " or spikes" if self.model.optimizer.skip_spikes else ""
            warnings.warn(
                f"None of the last {skipped} training steps was applied: their "
                f"gradients were not finite{spikes}, so that the model learned "
                f"nothing. {self._about_scale()}A loss of NaN means that no batch had "
                "a finite loss, which no scale can help: look for inf or NaN in the "
                "data, or for a layer that needs float32.",
                stacklevel=2,
            )

    def _about_scale(self) -> str:
        if self.model.optimizer.scaling.only_checks:
            return ""
        return (
            f"The loss scale is {self._last['scaler_scale']:g}; a rule other than a "
            "static one lowers it until gradients fit. If that takes long, start "
            "with a smaller one. "
        )

    def _write(self, logs: dict[str, Any] | None) -> None:
        if logs is not None:
            logs.update(self._last)

    def _scales(self) -> bool:
        return isinstance(self.model.optimizer, LossScaleOptimizer)
