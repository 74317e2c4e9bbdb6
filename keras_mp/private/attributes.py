"""Attributes that objects have for a while."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_mp.dtypes import LOW_PRECISION

#: An object, and the attributes that it is to have.
Change = tuple[Any, dict[str, Any]]


@contextlib.contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give the object ``owner`` attributes of its own; afterwards what it had."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            delattr(owner, name)
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def attributes_for_now(changes: Iterable[Change]) -> Iterator[None]:
    """Give objects other attributes inside the block.

    Past their ``__setattr__``, which would track values and apply the rules of
    policies, so that afterwards everything is the very object it was.

    Args:
        changes: Pairs of an object and the attributes it is to have, as a dict; the
            object must have them already.
    """
    changes = list(changes)
    before = [{name: vars(owner)[name] for name in new} for owner, new in changes]
    try:
        for owner, new in changes:
            vars(owner).update(new)
        yield
    finally:
        for (owner, _), old in zip(changes, before, strict=True):
            vars(owner).update(old)


def policy_as(layer: keras.layers.Layer, policy: keras.DTypePolicy) -> Iterator[Change]:
    """Yield what to change, as of `attributes_for_now`, for ``layer`` to have it."""
    yield layer, {"_dtype_policy": policy}


def losses_apart(layer: keras.layers.Layer) -> Iterator[Change]:
    """Yield what to change for ``layer`` to collect losses in another list."""
    yield layer, {"_losses": list(layer._losses)}


def input_in(layer: keras.layers.Layer, dtype: str) -> Iterator[Change]:
    """Yield what to change for a low-precision ``InputLayer`` to be of ``dtype``.

    A Functional model casts what it is given to the dtype of this layer's output.
    """
    if layer.dtype in LOW_PRECISION:
        yield layer, {"_dtype": dtype}
        yield layer.output, {"_dtype": dtype}


def operations_in(layer: keras.layers.Layer, dtype: str) -> Iterator[Change]:
    """Yield what to change for low-precision operations of a graph to give ``dtype``.

    `keras.ops.cast(mask, x.dtype)` in the graph of a Functional model is an operation
    that keeps the dtype which ``x`` had then. No setter is public.
    """
    for operation in getattr(layer, "operations", ()):
        is_layer = isinstance(operation, keras.layers.Layer)
        if not is_layer and vars(operation).get("dtype") in LOW_PRECISION:
            yield operation, {"dtype": dtype}
