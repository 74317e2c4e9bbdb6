"""`ShadowCheck`: the gradients of ``fit`` beside those in float32."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from keras_mp.callbacks.looks import Looks
from keras_mp.recording import Batch, GradientError, Shadow
from keras_mp.scaling.base import checked_count, checked_number

#: The part of the model's gradient that a layer's must have to be judged. Gradients
#: that are 0 in exact arithmetic, such as of a bias before a normalization, are mere
#: rounding errors.
_NEGLIGIBLE = 1e-3


class Comparison(NamedTuple):
    """How far the gradients of one step are from float32's.

    Attributes:
        step: The number of the step, counted over all calls of ``fit``.
        layers: A dict of the path of each layer with weights to its `GradientError`.
    """

    step: int
    layers: dict[str, GradientError]


class ShadowCheck(Looks):
    """Computes every N-th batch of ``fit`` in float32 too, and compares gradients.

    Before the step of the batch, one compiled function runs it forward and backward
    twice, in the present precision and in float32, with the same weights and the same
    random numbers, such as of dropout. Training is bit for bit what it is without the
    callback. It takes as long as two or three steps for each batch that it looks at,
    for which it waits for the device, and the memory of a step in float32.

    It warns once of each layer whose gradient points another way than float32's. A
    layer's gradient is that of all its own weights together. A layer is not judged
    where its gradient is less than a thousandth of the model's, or not finite.

    Under a strategy it looks at the share of the first replica of each process.

    Args:
        every: N: steps ``N``, ``2 * N`` and so on of each ``fit`` are looked at, but
            not a first one that builds the model.
        limit: The smallest cosine that is not warned of, above -1 and below 1.
        rows: How many of the first rows of a batch are looked at; None for all. Few
            rows cost less, but their gradient is less exact, in each precision.
        keep: How many of the last comparisons ``history`` keeps.
        loss: ``loss(y, y_pred)``, a function or `keras.losses.Loss`, for a model whose
            ``train_step`` computes a loss of its own.

    Attributes:
        history: A list of `Comparison`: the ``step``, and ``layers``, a dict of a
            layer's path to its `GradientError`. That has ``error``, with ``relative``,
            the norm of the difference over that of float32's gradient, and ``cosine``;
            and ``share``, float32's gradient over the model's whole gradient.

    Raises:
        ValueError: A number is not as above; in ``fit``, the model has no ``call``, no
            loss that depends on its weights, or a quantized layer.
        TypeError: A number is no whole one, or ``loss`` is no function.

    Example:

    >>> check = keras_mp.callbacks.ShadowCheck(every=1)
    >>> history = model.fit(x, y, verbose=0, callbacks=[check])
    >>> step, layers = check.history[-1]
    >>> layers["sequential/dense"].error.cosine > 0.99
    True
    """

    def __init__(
        self,
        every: int = 100,
        *,
        limit: float = 0.9,
        rows: int | None = None,
        keep: int = 100,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(every, rows, loss)
        self.limit: float = checked_number(
            "ShadowCheck",
            "limit",
            limit,
            above=-1.0,
            below=1.0,
            needs="a cosine above -1 and below 1, such as 0.9",
        )
        self.keep: int = checked_count("ShadowCheck", "keep", keep)
        self._kept: collections.deque[Comparison] = collections.deque(maxlen=self.keep)
        self._warned: set[str] = set()

    @property
    def history(self) -> list[Comparison]:
        """The last comparisons, at most ``keep`` of them."""
        return list(self._kept)

    def begin(self) -> None:
        self._shadow = Shadow(self.model, "ShadowCheck", self.loss)
        self._warned = set()

    def look(self, step: int, batch: Batch, scale: float) -> None:
        layers = self._shadow.read(batch, scale, self.rows)
        self._kept.append(Comparison(step, layers))
        for path, (error, share) in layers.items():
            judged = share >= _NEGLIGIBLE and path not in self._warned
            if judged and error.cosine < self.limit:
                self._warned.add(path)
                warnings.warn(
                    f"ShadowCheck: gradient of {path} in step {step}: cosine "
                    f"{error.cosine:.2f} to float32's (limit {self.limit:g}), relative "
                    f"error {error.relative:.2g}. Have the layer, or one after it, "
                    "compute in float32; keras_mp.diagnose(model, x, y) says which.",
                    stacklevel=2,
                )
