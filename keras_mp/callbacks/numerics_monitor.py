"""`NumericsMonitor`: what the numbers of every layer do, over the steps of ``fit``."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from keras_mp.callbacks.looks import Looks, is_static
from keras_mp.callbacks.trends import Trends
from keras_mp.recording import (
    Batch,
    CsvWriter,
    Probe,
    Snapshot,
    TensorBoardWriter,
)
from keras_mp.saved_files import checked_path
from keras_mp.scaling.base import checked_count, checked_number


class NumericsMonitor(Looks):
    """Reads every layer's outputs and their gradients for every N-th batch of ``fit``.

    It runs the batch forward and backward before its step, in a function of its own
    that is compiled once, with the loss scale and the random numbers of the step.
    Training is bit for bit what it is without the callback. It costs about one step for
    each batch that it looks at, which waits for the device, and the memory of a step.

    It warns once of each layer in 16 bits that comes near the end of its dtype: with
    less headroom than ``headroom`` bits, and at least 4 bits less than in an earlier
    step. What a dynamic loss scale would mend by itself is not warned of.

    Under a strategy it looks at the share of the first replica of each process. Layers
    inside loops of a graph, such as the cells of an RNN, are not seen. A container that
    returns what a layer inside it has returned is left out.

    Args:
        every: N: steps ``N``, ``2 * N`` and so on of each ``fit`` are looked at, but
            not a first one that builds the model.
        headroom: How many bits of headroom are enough, a number of 0 or more.
        log_dir: A folder for TensorBoard: scalars, and histograms of exponents. To look
            at them, ``pip install tensorboard``. None for no logs.
        csv: A file for a row for each layer and step, written anew by the first
            ``fit``. None for no file.
        rows: How many of the first rows of a batch are looked at; None for all. Few
            rows cost less, but BatchNormalization has other statistics in them.
        sample: How many numbers of a tensor are counted at most. The largest magnitude,
            and whether there is inf or NaN, are those of all numbers.
        keep: How many of the last readings ``history`` keeps.
        loss: ``loss(y, y_pred)``, a function or `keras.losses.Loss`, for a model whose
            ``train_step`` computes a loss of its own.

    Attributes:
        history: A list of `Snapshot`: the ``step``, the loss ``scale``, the ``loss``,
            and ``layers``, a dict of a layer's path to its `Reading`. That has the
            `Measures` ``output`` and ``gradient``, and ``headroom`` and
            ``gradient_headroom``: the bits between the largest magnitude and the
            largest number of the dtype, log2 of their ratio.

    Raises:
        ValueError: A number is not as above; in ``fit``, the model has no ``call``, or
            no loss that depends on its weights.
        TypeError: A number is no whole one, or ``loss`` is no function.

    Example:

    >>> monitor = keras_mp.callbacks.NumericsMonitor(every=1)
    >>> history = model.fit(x, y, verbose=0, callbacks=[monitor])
    >>> step, scale, loss, layers = monitor.history[-1]
    >>> step, scale, list(layers)
    (1, 8.0, ['sequential/dense'])
    >>> layers["sequential/dense"].headroom > 3
    True
    """

    def __init__(
        self,
        every: int = 100,
        *,
        headroom: float = 3.0,
        log_dir: str | os.PathLike[str] | None = None,
        csv: str | os.PathLike[str] | None = None,
        rows: int | None = None,
        sample: int = 4096,
        keep: int = 100,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(every, rows, loss)
        self.headroom: float = checked_number(
            "NumericsMonitor",
            "headroom",
            headroom,
            above=-math.ulp(0.0),
            needs="a number of bits of 0 or more, such as 3.0",
        )
        for name, value in (("log_dir", log_dir), ("csv", csv)):
            if value is not None:
                checked_path("NumericsMonitor", name, value)
        self.log_dir: str | os.PathLike[str] | None = log_dir
        self.csv: str | os.PathLike[str] | None = csv
        self.sample: int = checked_count("NumericsMonitor", "sample", sample)
        self.keep: int = checked_count("NumericsMonitor", "keep", keep)
        self._kept: collections.deque[Snapshot] = collections.deque(maxlen=self.keep)
        self._writers: list[CsvWriter | TensorBoardWriter] | None = None

    @property
    def history(self) -> list[Snapshot]:
        """The last readings, at most ``keep`` of them."""
        return list(self._kept)

    def begin(self) -> None:
        self._probe = Probe(self.model, "NumericsMonitor", self.loss, self.sample)
        self._trends = Trends(self.headroom)
        if self._writers is None:
            self._writers = []
            kinds = (CsvWriter, self.csv), (TensorBoardWriter, self.log_dir)
            for kind, path in kinds:
                if path is not None:
                    with _warned(path):
                        self._writers.append(kind(path))

    def look(self, step: int, batch: Batch, scale: float) -> None:
        loss, layers = self._probe.read(batch, scale, self.rows)
        snapshot = Snapshot(step, scale, loss, layers)
        self._kept.append(snapshot)
        writers, self._writers = self._writers or [], []
        for writer in writers:  # one that fails is left out from then on
            with _warned(self.csv if isinstance(writer, CsvWriter) else self.log_dir):
                writer.write(snapshot)
                self._writers.append(writer)
        static = is_static(self.model.optimizer)
        for message in self._trends.warnings(step, layers, scale, static):
            warnings.warn(f"NumericsMonitor: {message}", stacklevel=2)


@contextlib.contextmanager
def _warned(path: Any) -> Iterator[None]:
    """Warn of a file that cannot be written, as on a full disk; training goes on."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"NumericsMonitor could not write {os.fspath(path)!r}: {error}. Training "
            "goes on without it.",
            stacklevel=2,
        )
