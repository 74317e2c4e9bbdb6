"""How methods of one object, a model, layer or optimizer, are wrapped: each once."""

from collections.abc import Callable, Iterator
from typing import Any

_WRAPPERS = "_keras_mp_wrappers"


def wrap_once(owner: Any, method: str, mark: str, wrapper: Callable) -> None:
    """Replace a method of ``owner`` by ``wrapper(method)``, unless that was done.

    Args:
        owner: A layer, model or optimizer, or another object with a ``__dict__``.
        method: The name of the method.
        mark: The purpose, which tells several wrappers of one method apart.
        wrapper: Returns a function with the signature of the method, made with
            `functools.wraps`.
    """
    if is_wrapped(owner, method, mark):
        return
    # Past `__setattr__`, by which Keras tracks what it gets.
    wrapped = vars(owner)[method] = wrapper(getattr(owner, method))
    vars(owner).setdefault(_WRAPPERS, {})[method, mark] = wrapped


def is_wrapped(owner: Any, method: str, mark: str) -> bool:
    """Return whether `wrap_once` has wrapped the method that ``owner`` has now.

    A method that was replaced since then, and not wrapped further, no longer is.
    """
    wrapped = vars(owner).get(_WRAPPERS, {}).get((method, mark))
    layers_of_wrapping = _unwrapped_step_by_step(getattr(owner, method))
    return wrapped is not None and any(each is wrapped for each in layers_of_wrapping)


def _unwrapped_step_by_step(function: Any) -> Iterator[Any]:
    """Yield ``function``, what it wraps, what that wraps, and so on."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)
