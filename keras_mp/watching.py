"""Looks at the device, now and then while a model is in ``fit``, and warnings."""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable

import keras

from keras_mp import private
from keras_mp.wrapping import wrap_once

#: Looks are taken after the first step, after this many, and each time the number of
#: steps has doubled. So a run of a million steps has 16 looks. Each look makes the host
#: wait for the device.
_EARLY = 50

_WATCHERS = "_keras_mp_watchers"
_UNCOUNTED = "_keras_mp_uncounted"


def watch(
    model: keras.Model, name: str, begin: Callable[[], Callable[[], Iterable[str]]]
) -> None:
    """Make ``model.fit`` warn of what a look at the device finds.

    Looks are taken after steps 1, 50, 100, 200, 400 and so on of a ``fit``, and after
    each epoch in which there were further steps; all watchers look at the same time.
    ``model.fit`` may take any arguments, but has to end in the ``fit`` of Keras, or in
    ``train_on_batch``.

    Args:
        model: A Keras model.
        name: The name of the watcher, which replaces an earlier one of that name.
        begin: Called when a ``fit`` begins. Returns ``look``, a function that yields
            messages to warn of, and may read variables.
    """
    watchers = vars(model).setdefault(_WATCHERS, {})
    watchers[name] = begin
    wrap_once(model, "fit", "watched", functools.partial(_watched, model, watchers))


def _watched(model, watchers, fit):
    """Return ``fit`` with looks at the device."""

    @functools.wraps(fit)
    def watched(*args, **kwargs):
        looks = [begin() for begin in watchers.values()]
        run = _Run(model, looks, watched.__code__)  # pyright: ignore
        with run.counting():
            history = fit(*args, **kwargs)
        run.look()
        return history

    return watched


class _Run:
    """One call of ``fit``: how many steps it has made, and when the next look is due.

    This is no callback, because Keras fetches the logs for one after each step.
    """

    def __init__(self, model, looks, caller):
        self._model = model
        self._looks = looks
        self._caller = caller  # the code that a warning's line has called
        self._steps = self._seen = 0
        self._due = 1

    @contextlib.contextmanager
    def counting(self):
        """Count the steps of the model in the block, and look where it is due."""
        model = self._model
        make = model.make_train_function

        def make_counted(*args, **kwargs):
            make(*args, **kwargs)
            if not hasattr(model.train_function, _UNCOUNTED):
                model.train_function = self._counted(model.train_function)

        replaced = [(model, {"make_train_function": make_counted})]
        with (
            private.attributes.attributes_for_now(replaced),
            private.trainer.epoch_ends(model, self.look),
        ):
            try:
                yield
            finally:
                step = model.train_function
                model.train_function = getattr(step, _UNCOUNTED, step)

    def _counted(self, function):
        """Return ``function``, which runs some steps, with a look where it is due.

        It gets an iterator, or a list with the batches of steps.
        """

        def counted(batches):
            logs = function(batches)
            several = self._model.steps_per_execution
            self._steps += len(batches) if isinstance(batches, list) else several
            if self._steps >= self._due:
                self._due = max(_EARLY, 2 * self._due)
                self.look()
            return logs

        setattr(counted, _UNCOUNTED, function)
        return counted

    def look(self):
        """Warn of what is found, unless no step was made since the last look."""
        if self._seen == self._steps:
            return
        self._seen = self._steps
        for look in self._looks:
            for message in look():
                warnings.warn(message, stacklevel=self._level())

    def _level(self):
        """Return the ``stacklevel`` of the caller of ``fit``, as seen from `look`."""
        frame, level = inspect.currentframe(), 1
        while frame is not None and frame.f_code is not self._caller:
            frame, level = frame.f_back, level + 1
        return level
