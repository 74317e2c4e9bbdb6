"""The batches of ``fit``, for callbacks: Keras's callbacks do not see them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_mp import private
from keras_mp.recording.step import Batch, metrics_kept
from keras_mp.wrapping import wrap_once

_FEED = "_keras_mp_feed"
_UNFED = "_keras_mp_unfed"


class BatchCallback(keras.callbacks.Callback):
    """A callback that is called before and after each step with the step's batch.

    Neither call waits for the device, nor makes Keras fetch the logs. Batches are kept
    by reference. While none of these is in a ``fit``, nothing is changed in it.

    A subclass that has an ``on_train_begin`` or ``on_train_end`` of its own calls this
    one's.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _feed_of(self.model).begin(self)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        _feed_of(self.model).end(self)

    def before_step(self, step: int, data: Any) -> None:
        """Take the batch of a step that was not made yet.

        Args:
            step: The number of the step in this ``fit``, from 1. A batch that is
                trained on `again` has a step for each time.
            data: The batch as the step gets it; under a strategy each of its tensors
                holds one for each replica. `share` returns that of one replica.
        """

    def after_step(self, step: int, data: Any, logs: Any) -> None:
        """Take the batch of a step that was made.

        Args:
            step: As of `before_step`.
            data: As of `before_step`.
            logs: What the ``train_step`` returned: a dict of tensors, as a rule.
        """

    def again(self) -> bool:
        """Return whether to train on the batch of the last step once more.

        Metrics and logs count a batch once, the first time.
        """
        return False


def share(model: keras.Model, data: Any) -> Batch:
    """Return what one replica of this machine gets of a batch.

    The first replica's share, or the next one's if that has no rows.

    Args:
        model: The model that is trained.
        data: A batch as `BatchCallback` gets it.
    """
    batches = shares(model, data)
    return next(filter(_has_rows, batches), batches[0])


def shares(model: keras.Model, data: Any) -> list[Batch]:
    """Return what each replica of this machine gets of a batch, in their order.

    Args:
        model: As of `share`.
        data: As of `share`.
    """
    strategy = private.trainer.strategy_of(model)
    leaves = keras.tree.flatten(data)
    if strategy is None:
        of_replicas = [leaves]
    else:
        local = map(strategy.experimental_local_results, leaves)
        of_replicas = list(zip(*local, strict=True))
    return [_batch(data, each) for each in of_replicas]


def _batch(data: Any, leaves: Iterable[Any]) -> Batch:
    # Keras passes None, such as for no weights, as a `tf.experimental.Optional`.
    given = [
        None if isinstance(leaf, tf.experimental.Optional) else leaf for leaf in leaves
    ]
    packed = keras.tree.pack_sequence_as(data, given)
    return Batch(*keras.utils.unpack_x_y_sample_weight(packed))


def executed(
    model: keras.Model, iterator: Iterable[Any], step: Callable[[Any], Any]
) -> Any:
    """Run the steps of one execution of ``fit``, each by a call of ``step``.

    Args:
        model: The model that is trained.
        iterator: What the ``train_function`` of the model got: batches.
        step: Takes a batch and returns the logs of its step.

    Returns:
        The logs of the last step.

    Raises:
        StopIteration: There was no batch, as an iterator at its end tells Keras.
    """
    ran = [step(data) for data in itertools.islice(iterator, model.steps_per_execution)]
    if not ran:
        raise StopIteration
    return ran[-1]


def _has_rows(batch: Batch) -> bool:
    leaves = keras.tree.flatten(batch)
    return all(leaf is None or leaf.shape[:1] != (0,) for leaf in leaves)


class _Feed:
    """Who is called with the batches of the ``fit`` that a model is in."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._listeners: list[BatchCallback] = []
        self._fit: Any = None
        self._steps = 0

    def begin(self, listener: BatchCallback) -> None:
        """Call ``listener`` from the next step on."""
        model = self._model
        if not self._in_same_fit():
            self._listeners, self._fit = [], _fit_of(model)
        others = self._others(listener)
        if not others:
            self._steps = 0
        self._listeners = [*others, listener]
        # A model may be given another function while it is in `fit`.
        wrap_once(model, "make_train_function", "fed", self._making)
        self._take_over()

    def end(self, listener: BatchCallback) -> None:
        """Call ``listener`` no more."""
        self._listeners = self._others(listener)
        if not self._listeners:
            step = self._model.train_function
            self._model.train_function = getattr(step, _UNFED, step)

    def _others(self, listener: BatchCallback) -> list[BatchCallback]:
        return [each for each in self._listeners if each is not listener]

    def _in_same_fit(self) -> bool:
        # A `fit` that an exception ended has left its listeners here. The next has
        # another `History`.
        return self._fit is _fit_of(self._model)

    def _making(self, make: Callable) -> Callable:
        @functools.wraps(make)
        def make_fed(*args: Any, **kwargs: Any) -> None:
            make(*args, **kwargs)
            if self._listeners and self._in_same_fit():
                self._take_over()

        return make_fed

    def _take_over(self) -> None:
        function = self._model.train_function
        if function is None or hasattr(function, _UNFED):
            return

        @functools.wraps(function)
        def fed(iterator: Iterator) -> Any:
            if self._listeners and self._in_same_fit():
                return self._run(function, iterator)
            return function(iterator)

        setattr(fed, _UNFED, function)
        self._model.train_function = fed

    def _run(self, function: Callable, iterator: Iterator) -> Any:
        """Run the steps of one execution, each in a call of its own."""
        step = functools.partial(self._step, function)
        return executed(self._model, iterator, step)

    def _step(self, function: Callable, data: Any) -> Any:
        logs = self._once(function, data)
        while any([listener.again() for listener in self._listeners]):
            with metrics_kept(self._model):
                self._once(function, data)
        return logs

    def _once(self, function: Callable, data: Any) -> Any:
        self._steps += 1
        for listener in self._listeners:
            listener.before_step(self._steps, data)
        logs = function([data])
        for listener in self._listeners:
            listener.after_step(self._steps, data, logs)
        return logs


def _feed_of(model: keras.Model) -> _Feed:
    # Past `__setattr__`, by which Keras tracks what it gets.
    return vars(model).setdefault(_FEED, _Feed(model))


def _fit_of(model: keras.Model) -> Any:
    """Return what each ``fit`` of a model has of its own."""
    return getattr(model, "history", None)
