"""How a guard gets around a method of one object: once, and known by its own mark."""

from collections.abc import Callable
from typing import Any

_MARKS = "_keras_mp_guards"


def is_wrapped(owner: Any, mark: str) -> bool:
    """Return whether `wrap_once` has put ``mark`` on ``owner``."""
    return mark in vars(owner).get(_MARKS, ())


def wrap_once(owner: Any, method: str, mark: str, wrapper: Callable) -> None:
    """Replace a method of ``owner`` by ``wrapper(method)``, unless it has that mark.

    Args:
        owner: A layer, or another object with a ``__dict__``.
        method: The name of the method.
        mark: Of the guard. One object may have several.
        wrapper: Returns a function with the signature of the method.
    """
    if is_wrapped(owner, mark):
        return
    # Past `__setattr__`, by which Keras tracks what it gets.
    vars(owner).setdefault(_MARKS, set()).add(mark)
    vars(owner)[method] = wrapper(getattr(owner, method))
