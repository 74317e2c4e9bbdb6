"""`FlightRecorder`: writes what repeats a step that overflowed to a file."""

from __future__ import annotations

import os
import pathlib
import time
import warnings
from typing import Any

import numpy as np

from keras_mp import distribute, flight, private
from keras_mp.callbacks.overflow import Overflow
from keras_mp.callbacks.skip import Skip
from keras_mp.callbacks.skip_callback import SkipCallback
from keras_mp.diagnosis import rerun
from keras_mp.recording import Batch
from keras_mp.saved_files import checked_path
from keras_mp.scaling.base import checked_count

_NOT_REPEATABLE = "only the sum over the replicas overflowed"
_TOO_LARGE = (
    "the batch is larger than max_bytes={}, and no part of it that fits overflows"
)


class FlightRecorder(SkipCallback):
    """Writes a file with all that repeats a step whose gradients were not finite.

    The file holds the replica's share of the batch, the states of the model's random
    generators, the last 1,000 loss scales, and the names of what overflowed.
    ``keras-mp replay FILE --model MODEL.keras``, or `keras_mp.replay`, repeats the step
    and prints its diagnosis. Weights are not in it: keep the model with
    `keras.callbacks.ModelCheckpoint`. A replay warns if its weights are others.

    Each cause is written once in a ``fit``, by each replica. What is expected is not
    written, as `OverflowMonitor` has it: the overflow that a growing scale provokes,
    and a first scale that is too large. Both find skipped steps in the same way, and
    run a batch again once for both.

    A file is there whole or not at all, whatever ends the process meanwhile, and holds
    no pickled object. If it cannot be written, as on a full disk, a warning says so and
    training goes on.

    Args:
        path: A folder, which is made if there is none. Under several machines each
            writes for its own replicas.
        max_files: How many files there are at most, of each machine. In one ``fit``
            the first ones are kept; those of earlier ones are removed for them, the
            oldest first.
        max_bytes: How large a batch in a file may be. Of a larger one a part is
            written that overflows by itself: half of it, or half of that, and so on.
            If there is none, the batch is left out, which the file says.

    Attributes:
        files: A list of the paths of the files of this ``fit``.

    Raises:
        TypeError, ValueError: ``max_files`` or ``max_bytes`` is not a whole number
            above 0; or ``path`` is a file.

    Example:

    >>> recorder = keras_mp.callbacks.FlightRecorder("flights", max_files=3)
    >>> history = model.fit(x, y, verbose=0, callbacks=[recorder])
    >>> recorder.files
    []
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_files: int = 5,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__()
        self.path: str = checked_path("FlightRecorder", "path", path)
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ValueError(
                f"FlightRecorder({self.path!r}) needs the path of a folder. Got a "
                "file. Name another folder, which is made if there is none."
            )
        self.max_files: int = checked_count("FlightRecorder", "max_files", max_files)
        self.max_bytes: int = checked_count("FlightRecorder", "max_bytes", max_bytes)
        self.files: list[str] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.files = []
        self._causes: set[Any] = set()
        if self._skips is not None:
            try:
                os.makedirs(self.path, exist_ok=True)
            except OSError as error:
                self._warn_of(self.path, error)
                return
            for each in self._of_this_machine(".overflow-*.npz.tmp"):
                each.unlink(missing_ok=True)  # of a process that was ended

    def _after_skip(self, skip: Skip) -> None:
        if len(self.files) >= self.max_files or not skip.shares:
            return
        if skip.expected or skip.of_first_scale:
            return
        for overflow in skip.overflows:
            cause = overflow.replica, overflow.cause
            if cause not in self._causes and len(self.files) < self.max_files:
                self._causes.add(cause)
                self._write(skip, overflow)

    def _write(self, skip: Skip, overflow: Overflow) -> None:
        now = time.localtime()
        replica = "all" if overflow.replica is None else overflow.replica
        name = f"step-{overflow.step}-replica-{replica}.npz"
        name = f"overflow-{time.strftime('%Y%m%d-%H%M%S', now)}-{name}"
        path = pathlib.Path(self.path, name)
        when = time.strftime("%Y-%m-%d %H:%M:%S", now)
        try:
            flight.write(self._flight(skip, overflow, when), path)
        except OSError as error:
            self._warn_of(path, error)
            return
        self.files.append(str(path))
        self._remove_older()
        warnings.warn(
            f"FlightRecorder: {overflow}. Repeat it by `keras-mp replay {path} --model "
            "MODEL.keras`.",
            stacklevel=2,
        )

    def _warn_of(self, path: str | os.PathLike[str], error: OSError) -> None:
        warnings.warn(
            f"FlightRecorder could not write {os.fspath(path)!r}: {error}. Training "
            "goes on without it.",
            stacklevel=3,
        )

    def _flight(self, skip: Skip, overflow: Overflow, when: str) -> flight.Flight:
        model = self.model
        batch, rows, left_out = self._batch(skip, overflow)
        return flight.Flight(
            model=model.name,
            time=when,
            step=overflow.step,
            replica=overflow.replica,
            cause=overflow.cause,
            culprits=overflow.culprits,
            variables=overflow.variables,
            scales=np.array(skip.scales, "float32"),
            weights=flight.weights_digest(model),
            seeds=[
                np.asarray(each)
                for each in private.variables.values_of(private.draws.seeds_of(model))
            ],
            batch=batch,
            rows=rows,
            left_out=left_out,
        )

    def _batch(
        self, skip: Skip, overflow: Overflow
    ) -> tuple[Batch | None, tuple[int, int] | None, str]:
        """Return the batch or a part of it, its rows, and why there is none."""
        if overflow.replica is None:
            return None, None, _NOT_REPEATABLE

        def overflows(batch: Batch) -> bool:
            try:
                return bool(rerun(self.model, batch, overflow.scale).culprits)
            except Exception:  # as in a `Skip`
                return False

        whole = skip.shares[overflow.replica]
        try:
            batch, rows = flight.fitting(whole, self.max_bytes, overflows)
        except TypeError as error:
            return None, None, f"a file cannot keep {error}"
        left_out = "" if batch else _TOO_LARGE.format(self.max_bytes)
        return batch, rows, left_out

    def _remove_older(self) -> None:
        """Remove files of earlier ``fit``, the oldest first, if there are too many."""
        files = sorted(self._of_this_machine("overflow-*.npz"))
        earlier = [each for each in files if str(each) not in self.files]
        for each in earlier[: max(0, len(files) - self.max_files)]:
            each.unlink(missing_ok=True)

    def _of_this_machine(self, pattern: str) -> list[pathlib.Path]:
        replicas = [*distribute.replicas_here(self.model), "all"]
        return [
            each
            for each in pathlib.Path(self.path).glob(pattern)
            if any(f"-replica-{replica}.npz" in each.name for replica in replicas)
        ]
