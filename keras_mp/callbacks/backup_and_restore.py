"""`BackupAndRestore`: training that was killed goes on from the very step."""

from __future__ import annotations

import datetime
import os
import pathlib
import time
import warnings
from typing import Any

import keras

from keras_mp import distribute, private
from keras_mp.recording import BatchCallback
from keras_mp.resuming import backup, iterators, randomness, values
from keras_mp.resuming.backup import Backup
from keras_mp.resuming.batches import Batches, Place
from keras_mp.resuming.folder import Folder
from keras_mp.saved_files import checked_path
from keras_mp.scaling.base import checked_count


class BackupAndRestore(keras.callbacks.Callback):
    """Backs training up, and goes on from the very step after it was killed.

    Like `keras.callbacks.BackupAndRestore`, whose arguments it has, but what goes on is
    bit for bit what would have been: weights, optimizer variables, the loss scale and
    its counters, statistics, metrics in the middle of an epoch, random generators of
    layers, of Python and of NumPy, the `History`, and the place in the data. A backup
    is written beside the last one, synchronised with the disk and renamed, so that a
    kill at any moment leaves one that can be loaded. Each array is checked when it is
    read; if a backup is damaged, the one before it is used, with a warning.

    Give it first in the list of callbacks, and start the program in the same way, with
    the same seeds (`keras.utils.set_random_seed`).

    *The place in the data.* Arrays and `tf.data` pipelines on one device go on where
    they were, shuffled as they were. Elsewhere (`keras.utils.PyDataset`, Python code or
    random operations in the pipeline, ``steps_per_epoch``, several replicas) earlier
    batches are drawn again and dropped. If they turn out to be others, because they are
    shuffled without a seed, the epoch is trained again from its beginning, with a
    warning; data of which this is known are warned of at the start.

    Under `tf.distribute.MultiWorkerMirroredStrategy` each worker has its own backups,
    and all go on from the newest step that all have. What other callbacks remember is
    theirs.

    It synchronises with the device when it writes, and only then.

    Args:
        backup_dir: A folder for the backups of this training alone.
        every: ``"epoch"``, before each but the first; a number of steps; or a
            `datetime.timedelta`, on one machine.
        keep: How many backups stay, 1 or more. With 2 there is one to fall back to.
        delete_checkpoint: Whether the backups are removed when ``fit`` ends.

    Raises:
        TypeError: ``every`` or ``keep`` is none of these.
        ValueError: A number is below 1, or ``backup_dir`` is empty. In ``fit``: the
            backups are of another model; or the time is to decide on several machines.

    Example:

    >>> safe = keras_mp.callbacks.BackupAndRestore("backups", every=100)
    >>> history = model.fit(x, y, verbose=0, callbacks=[safe])

    Attributes:
        restored: The place that this ``fit`` went on from, as (epoch, step), or None.
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        every: int | str | datetime.timedelta = "epoch",
        keep: int = 2,
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        if not checked_path("BackupAndRestore", "backup_dir", backup_dir):
            raise ValueError(
                "BackupAndRestore(backup_dir='') needs a folder. Give one that holds "
                "the backups of this training alone."
            )
        self.backup_dir: pathlib.Path = pathlib.Path(backup_dir)
        self.every: int | str | datetime.timedelta = _checked_interval(every)
        self.keep: int = checked_count("BackupAndRestore", "keep", keep)
        self.delete_checkpoint: bool = delete_checkpoint
        self.restored: tuple[int, int] | None = None

    # Keras's calls.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._begin()
        found = self._newest_of_all()
        if found is not None:
            self._restore(*found)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._first_epoch is None:
            self._first_epoch = epoch
        self._finish_restoring()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        is_resumed = self.restored is not None and self.restored[0] == epoch
        if is_resumed and logs is not None and all(_is_of_validation(n) for n in logs):
            # All of the epoch but its end was done before. Keras has no step's logs.
            logs.update(self.model.get_metrics_result())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._finish_restoring()
        self._last_batch.on_train_end()
        if self.delete_checkpoint:
            self._of_epoch.remove()
            self._folder.remove()
        else:
            self._write(self._folder, self._place(self._epoch + 1, 0, None))

    # Beginning.

    def _begin(self) -> None:
        steps = private.epochs.epoch_iterator_of(self.model)
        if steps is None:
            raise TypeError(
                "BackupAndRestore needs the `fit` of `keras.Model`, from whose steps "
                f"it goes on. Got a `fit` of {type(self.model).__name__}'s own. Call "
                "`super().fit` in it."
            )
        path, is_alone = self.backup_dir, distribute.is_alone(self.model)
        if not is_alone:
            path = path / f"replica-{distribute.replicas_here(self.model).start}"
        if isinstance(self.every, datetime.timedelta) and not is_alone:
            raise ValueError(
                f"BackupAndRestore(every={self.every!r}) cannot go by the time on "
                "several machines, whose clocks differ. Give a number of steps."
            )
        self._folder = Folder(path, self.keep)
        self._of_epoch = Folder(path / "epoch", keep=1)
        self._last_batch = _LastBatch()
        self._last_batch.set_model(self.model)
        self._batches = Batches(
            steps, self._before_step, self._begin_epoch_anew, self.model
        )
        self._source = steps
        self._epoch = 0
        self._first_epoch: int | None = None
        self._serial = self._since = 0
        self._written_at = time.monotonic()
        self._can_save: bool | None = None
        self._start_of_epoch: Any = None
        self._pending: Backup | None = None
        self.restored = None

    def _newest_of_all(self) -> tuple[int, Backup] | None:
        """Return the newest backup that every worker has, with its number, or None."""
        limit = float("inf")
        while True:
            found = self._folder.newest(limit)
            serial = -1.0 if found is None else float(found[0])
            limit = distribute.smallest_over_workers(self.model, serial)
            largest = -distribute.smallest_over_workers(self.model, -serial)
            if limit == largest:
                break
        if found is None:
            self._folder.remove_after(-1)
            return None
        return found

    def _restore(self, serial: int, found: Backup) -> None:
        model, place = self.model, found.place
        if not model.built or len(model.metrics_variables) < _metrics(found.state):
            specs = private.epochs.element_specs(self._source)
            private.trainer.build_for(model, specs)
        try:
            values.check_same_model(model, found.state)
            values.assign(model, found.state)
        except ValueError as error:
            raise ValueError(
                f"BackupAndRestore({os.fspath(self.backup_dir)!r}) needs the model of "
                f"its backups. Got another one: {error}. Give another folder, or "
                "remove this one to begin anew."
            ) from None
        for folder in (self._folder, self._of_epoch):
            folder.remove_after(serial)
        self._serial = serial + 1
        self._epoch = place.epoch - 1
        self._first_epoch = place.first_epoch
        self._start_of_epoch = place.start
        private.epochs.begin_with_epoch(model, place.epoch)
        self._batches.start_at(place)
        self._pending = found
        self.restored = (place.epoch, place.step)

    def _finish_restoring(self) -> None:
        """Restore what Keras resets, or others make, after ``on_train_begin``."""
        found, self._pending = self._pending, None
        if found is None:
            return
        private.epochs.begin_with_epoch(self.model, None)
        values.assign(self.model, values.that_come_later(found.state))
        history: Any = self.model.history
        history.history, history.epoch = found.history, found.epochs

    def _begin_epoch_anew(self) -> None:
        """Restore the beginning of the epoch, whose data are others now."""
        found = self._of_epoch.newest()
        saved = None if found is None else found[1]
        is_there = saved is not None and saved.place.epoch == self._epoch
        warnings.warn(
            f"BackupAndRestore: the data of epoch {self._epoch} are not those that "
            "they were when it was backed up. The epoch begins anew"
            f"{'' if is_there else ', with the weights of the backup'}. Shuffle with "
            "a seed, or call keras.utils.set_random_seed before `fit`.",
            stacklevel=2,
        )
        if saved is not None and is_there:
            values.assign(self.model, saved.state)
        else:
            self.model.reset_metrics()

    # Steps.

    def _before_step(self, step: int, iterator: Any) -> None:
        if self._can_save is None:
            self._look_at(iterator)
        else:
            self._since += self.model.steps_per_execution
        if step == 0 and self._can_save:
            self._start_of_epoch = iterators.saved(iterator)
        elif step == 0 and self.every != "epoch":
            self._write(self._of_epoch, self._place(self._epoch, 0, iterator))
        if self._is_due(step):
            self._write(self._folder, self._place(self._epoch, step, iterator))
            self._since, self._written_at = 0, time.monotonic()

    def _look_at(self, iterator: Any) -> None:
        """Find out whether the place in the data can be saved."""
        self._can_save = (
            self._source.steps_per_epoch is None
            and not private.epochs.shuffles_rows_of_batches(self._source)
            and iterators.saved(iterator) is not None
        )
        if self._can_save:
            return
        self._last_batch.on_train_begin()
        if private.epochs.shuffles_without_seed(self._source):
            warnings.warn(
                "BackupAndRestore: the place in these data cannot be kept, because "
                "they are shuffled without a seed. After a kill training goes on with "
                "the epoch. Call keras.utils.set_random_seed before `fit`.",
                stacklevel=2,
            )

    def _is_due(self, step: int) -> bool:
        if isinstance(self.every, datetime.timedelta):
            return time.monotonic() - self._written_at >= self.every.total_seconds()
        if isinstance(self.every, str):
            return step == 0 and self._since > 0
        return self._since >= self.every

    def _place(self, epoch: int, step: int, iterator: Any) -> Place:
        first = epoch if self._first_epoch is None else self._first_epoch
        saved = self._iterator_before(step, iterator)
        if saved is not None:
            start = self._start_of_epoch
            return Place(epoch, step, first, randomness.state(), None, saved, start)
        seen, batch = self._last_batch.batch, None
        if step and seen is not None:
            batch = self._batches.checksum(seen)
        at_start = self._batches.random_at_start or randomness.state()
        return Place(epoch, step, first, at_start, batch, None, None)

    def _iterator_before(self, step: int, iterator: Any) -> Any:
        """Return the state of the iterator before a step, or None.

        It is saved once for each step: it is as large as the buffers of the data.
        """
        if iterator is None or not self._can_save:
            return None
        return self._start_of_epoch if step == 0 else iterators.saved(iterator)

    def _write(self, folder: Folder, place: Place) -> None:
        try:
            folder.write(self._serial, backup.taken(self.model, place))
        except OSError as error:
            warnings.warn(
                f"BackupAndRestore could not write a backup to {folder.path}: {error}. "
                "Training goes on, and earlier backups stay.",
                stacklevel=2,
            )
        self._serial += 1


class _LastBatch(BatchCallback):
    """Keeps the last batch of ``fit``, by reference."""

    batch: Any = None

    def after_step(self, step: int, data: Any, logs: Any) -> None:
        self.batch = data


def _is_of_validation(name: str) -> bool:
    return name.startswith("val_")


def _metrics(state: values.Values) -> int:
    return sum(key.startswith("metrics/") for key in state)


def _checked_interval(every: Any) -> int | str | datetime.timedelta:
    if isinstance(every, str) and every == "epoch":
        return every
    if isinstance(every, datetime.timedelta):
        if every > datetime.timedelta(0):
            return every
        raise ValueError(
            f"BackupAndRestore(every={every!r}) needs a time above 0, such as "
            "datetime.timedelta(minutes=5)."
        )
    if isinstance(every, str):
        raise ValueError(
            f"BackupAndRestore(every={every!r}) needs 'epoch', a number of steps or a "
            "datetime.timedelta."
        )
    return checked_count("BackupAndRestore", "every", every)
