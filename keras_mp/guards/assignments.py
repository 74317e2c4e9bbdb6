"""Exact assignments to variables in a ``call`` of the user's own.

In a ``call`` Keras reads float32 variables in 16 bits, so that a counter stops at 2,048
in float16 and a moving average is rounded in every step. `assign_add` and `assign_sub`
read what is stored instead. Where ``assign`` gets a 16-bit value, the code that made it
has to compute in float32 (`keras_mp.guards.own_islands`).
"""

import contextlib
import functools
import threading
from collections.abc import Iterator

import keras

from keras_mp import casts, dtypes, flow, private
from keras_mp.wrapping import wrap_once

_NAMES = frozenset({"assign", "assign_add", "assign_sub", "update_state"})


class RoundedAssignment(TypeError):
    """A float32 variable was to be assigned a value that was rounded to 16 bits."""


class _Watch(threading.local):
    on = False


_watch = _Watch()


@contextlib.contextmanager
def watched(layer: keras.layers.Layer) -> Iterator[None]:
    """Raise `RoundedAssignment` where the code of ``layer`` assigns rounded values.

    It raises in this context only. Exact ``assign_add`` and the like stay afterwards.
    """
    before, _watch.on = _watch.on, private.layers.mentions(type(layer), _NAMES)
    try:
        if _watch.on:
            _make_exact(layer)
        yield
    finally:
        _watch.on = before


def _make_exact(layer):
    for variable in layer.variables:
        wrap_once(variable, "assign", "watched", _watching(variable))
        for name in ("assign_add", "assign_sub"):
            wrap_once(variable, name, "stored", functools.partial(_on_stored, variable))
    for inner in private.layers.walk(layer):
        for metric in private.layers.metrics_of(inner):
            wrap_once(metric, "update_state", "exact", _as_stored)


def _watching(variable):
    def watching(assign):
        @functools.wraps(assign)
        def watched_assign(value):
            rounds = _watch.on and flow.reader() == flow.CODE and dtypes.is_low(value)
            if rounds and private.variables.stored_dtype(variable) == "float32":
                raise RoundedAssignment(
                    f"a {dtypes.dtype_of(value)} value is assigned to variable "
                    f"'{variable.path}', which is float32: it was rounded"
                )
            with private.variables.variables_as_stored():
                return assign(value)

        return watched_assign

    return watching


def _on_stored(variable, change):
    @functools.wraps(change)
    def exact(value):
        with private.variables.variables_as_stored():
            return change(casts.cast_floats(value, variable.dtype))

    return exact


def _as_stored(update_state):
    @functools.wraps(update_state)
    def exact(*args, **kwargs):
        with private.variables.variables_as_stored():
            return update_state(*args, **kwargs)

    return exact
