"""The batches of ``fit`` from a place in an epoch on."""

from __future__ import annotations

import collections
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_mp import distribute, private
from keras_mp.resuming import iterators, randomness

Steps = Iterator[tuple[int, int, Any]]


class Place(NamedTuple):
    """Where training stands in its data, before a step.

    Attributes:
        epoch: The number of the epoch, from 0.
        step: The number of the step in it, from 0.
        first_epoch: The epoch with which training began.
        random: States of Python's and NumPy's generators; those of the beginning of
            the epoch, if ``iterator`` is None.
        batch: A checksum of the batch before the step, or None.
        iterator: The state of the iterator of the data, or None.
        start: The state that it had at the beginning of the epoch, or None.
    """

    epoch: int
    step: int
    first_epoch: int
    random: dict[str, Any]
    batch: int | None
    iterator: dict[str, np.ndarray] | None
    start: dict[str, np.ndarray] | None


class Batches:
    """Has a ``fit`` begin at a place, and calls before each step.

    Where the state of the iterator was saved, it is restored. Elsewhere the batches
    before the place are drawn and dropped, and the last one is compared with what it
    was.

    Args:
        epoch_iterator: What yields the steps of an epoch in Keras's ``fit``.
        before_step: Called with the step and the iterator before each step.
        misplaced: Called if the data are not what they were. The epoch begins anew.
        model: The model that is in ``fit``.
    """

    def __init__(
        self,
        epoch_iterator: Any,
        before_step: Callable[[int, Any], None],
        misplaced: Callable[[], None],
        model: keras.Model,
    ) -> None:
        self._source = epoch_iterator
        self._before_step = before_step
        self._misplaced = misplaced
        self._model = model
        self._start: Place | None = None
        self.random_at_start: dict[str, Any] = {}
        private.epochs.enumerate_with(epoch_iterator, self._wrapped)

    def start_at(self, place: Place) -> None:
        """Have the next epoch begin at ``place``."""
        self._start = place

    def _wrapped(self, enumerate_epoch: Callable[[], Steps]) -> Callable[[], Steps]:
        @functools.wraps(enumerate_epoch)
        def enumerate_from_place() -> Steps:
            place, self._start = self._start, None
            if place is None:
                self.random_at_start = randomness.state()
                steps = enumerate_epoch()
            else:
                steps = self._from(place, enumerate_epoch)
            for first, last, iterator in steps:
                self._before_step(first, iterator)
                yield first, last, iterator

        return enumerate_from_place

    def _from(self, place: Place, enumerate_epoch: Callable[[], Steps]) -> Steps:
        if place.iterator is None:
            self._repeat(enumerate_epoch, place.epoch - place.first_epoch)
        randomness.set_state(place.random)
        self.random_at_start = place.random
        steps = self._after(place, enumerate_epoch())
        found = distribute.smallest_over_workers(self._model, float(steps is not None))
        if steps is not None and found:
            return steps
        self._misplaced()
        private.epochs.end_epoch_of_data(self._source)
        randomness.set_state(place.random)
        return enumerate_epoch()

    def _repeat(self, enumerate_epoch: Callable[[], Steps], epochs: int) -> None:
        """Do what past epochs did to the order of the data.

        Data may be shuffled by the number of iterators that were made, and a
        `keras.utils.PyDataset` by itself as an epoch ends. Where one iterator goes on
        through all epochs, its batches are drawn.
        """
        dataset = private.epochs.py_dataset_of(self._source)
        for _ in range(epochs if self._source.num_batches else 0):
            if dataset is not None:
                dataset.on_epoch_begin()
                dataset.on_epoch_end()
                continue
            for _, _, iterator in enumerate_epoch():
                if self._source.steps_per_epoch:
                    self._draw(iterator)

    def _after(self, place: Place, steps: Steps) -> Steps | None:
        """Return the ``steps`` from ``place`` on; None if it is not in the data."""
        batch = None
        for first, last, iterator in steps:
            if first == 0 and place.iterator is not None:
                iterators.restore(iterator, place.iterator)
                self._shuffle_on_from(place)
            if first >= place.step:
                found = batch is None or self.checksum(batch) == place.batch
                return (
                    itertools.chain([(first, last, iterator)], steps) if found else None
                )
            if place.iterator is None:
                batch = self._draw(iterator)
                if batch is None:
                    return None
        return None

    def _shuffle_on_from(self, place: Place) -> None:
        """Have the next epochs be shuffled as if this one had begun here.

        TensorFlow restores another seed for them, if all elements of an epoch were in
        the buffer that it shuffles.
        """
        if place.start is not None:
            other = private.epochs.new_iterator(self._source)
            iterators.restore(other, place.start)

    def _draw(self, iterator: Any) -> Any:
        """Return the last batch of the next execution; None if there is none."""
        drawn = itertools.islice(iterator, self._source.steps_per_execution)
        return next(iter(collections.deque(drawn, maxlen=1)), None)

    def checksum(self, batch: Any) -> int:
        """Return a checksum of a batch, on this machine's replicas."""
        checksum, strategy = 0, private.trainer.strategy_of(self._model)
        for leaf in keras.tree.flatten(batch):
            for part in (
                strategy.experimental_local_results(leaf) if strategy else [leaf]
            ):
                checksum = zlib.crc32(_bytes(part), checksum)
        return checksum


def _bytes(part: Any) -> bytes:
    if not hasattr(part, "numpy"):  # such as the absence of weights
        return b""
    array = np.asarray(part)
    return b"".join(array.ravel()) if array.dtype.hasobject else array.tobytes()
