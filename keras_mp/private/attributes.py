"""Attributes that objects have for a while."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_mp.dtypes import LOW_PRECISION
from keras_mp.private import variables

#: An object, and the attributes that it is to have.
Change = tuple[Any, dict[str, Any]]


@contextlib.contextmanager
def attributes_for_now(changes: Iterable[Change]) -> Iterator[None]:
    """Give objects other attributes inside the block, and restore them afterwards.

    Past their ``__setattr__``, which would track values and apply the rules of
    policies, so that afterwards everything is the very object it was.

    Args:
        changes: Pairs of an object and the attributes it is to have, as a dict.
    """
    changes = list(changes)
    before = [
        {name: vars(owner)[name] for name in new if name in vars(owner)}
        for owner, new in changes
    ]
    try:
        for owner, new in changes:
            vars(owner).update(new)
        yield
    finally:
        for (owner, new), old in zip(changes, before, strict=True):
            for name in new.keys() - old.keys():
                del vars(owner)[name]
            vars(owner).update(old)


@contextlib.contextmanager
def attributes_restored(owners: Iterable[Any]) -> Iterator[None]:
    """Restore all attributes of ``owners`` that the block changes, as `kept` does."""
    restore = kept(owners)
    try:
        yield
    finally:
        restore()


def kept(owners: Iterable[Any]) -> Callable[[], None]:
    """Return a function that gives ``owners`` the attributes that they have now.

    The dicts in which keras_mp keeps what it knows of an object are restored too.
    """
    owners = list(owners)
    before = [dict(vars(owner)) for owner in owners]
    own = [
        (value, dict(value))
        for attributes in before
        for name, value in attributes.items()
        if name.startswith("_keras_mp") and isinstance(value, dict)
    ]

    def restore() -> None:
        for owner, attributes in zip(owners, before, strict=True):
            vars(owner).clear()
            vars(owner).update(attributes)
        for value, items in own:
            value.clear()
            value.update(items)

    return restore


@contextlib.contextmanager
def in_float32(layer: keras.layers.Layer) -> Iterator[None]:
    """Have ``layer`` compute in float32, with its variables as stored, in the block."""
    policy = keras.DTypePolicy("float32")
    with attributes_for_now(policy_as(layer, policy)), variables.variables_as_stored():
        yield


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
