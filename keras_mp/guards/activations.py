"""Activation functions that compute in float32, or can be computed again in it.

A layer has its guarded functions only while it is called. At any other time, also when
it is saved, it has the functions that it was given.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import dtypes, flow, precision_lists, private
from keras_mp.ops import float32
from keras_mp.wrapping import is_wrapped, wrap_once

#: The attributes of layers that hold functions of a tensor.
_NAMES = ("activation", "recurrent_activation", "function")


def has_steep(layer: keras.layers.Layer) -> bool:
    """Return whether any activation function of ``layer`` is known to need float32."""
    return any(map(precision_lists.is_steep_function, functions_of(layer).values()))


def has_any(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` has a function that changes the numbers it gets."""
    return bool(functions_of(layer))


def are_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether the functions of ``layer`` are guarded."""
    return is_wrapped(layer, "call", "activation")


def guard(layer: keras.layers.Layer) -> None:
    """Make the functions of ``layer`` compute in float32 where that matters.

    Steep ones compute in float32: those of Keras's that are on the precision lists, and
    any other that uses one of `precision_lists.FLOAT32_OPERATIONS`. What Keras would
    round stays in float32 for readers that take it: softmax probabilities below
    float16's smallest number, exponentials above its largest. The result of any other
    function remembers how to compute it in float32, for a model that returns it.
    """
    known = {}
    for method in ("call", "quantized_call"):
        if hasattr(layer, method):
            wrapper = functools.partial(_with_guarded, layer, known)
            wrap_once(layer, method, "activation", wrapper)


def functions_of(layer: keras.layers.Layer) -> dict[str, Callable]:
    """Return the functions of ``layer`` that change numbers, by attribute."""
    own = {name: vars(layer).get(name) for name in _NAMES}
    in_cell = hasattr(layer, "state_size")
    return {
        name: function
        for name, function in own.items()
        if callable(function)
        and not isinstance(function, keras.layers.Layer)
        and not precision_lists.moves_only(function)
        # Results of the other functions of a cell do not leave the cell.
        and (precision_lists.is_steep_function(function) or not in_cell)
    }


def _with_guarded(layer, known, call):
    @functools.wraps(call)
    def with_guarded(*args, **kwargs):
        if not dtypes.computes_low(layer):
            return call(*args, **kwargs)
        guarded = {
            name: _guarded(function, known, hasattr(layer, "state_size"))
            for name, function in functions_of(layer).items()
        }
        with private.attributes.attributes_for_now([(layer, guarded)]):
            return call(*args, **kwargs)

    return with_guarded


def _guarded(function, known, in_cell):
    """Return ``function``, guarded; ``known`` has the kinds of functions so far."""

    @functools.wraps(function)
    def guarded(x, *args, **kwargs):
        if not dtypes.is_low(x):
            return function(x, *args, **kwargs)

        def exact():
            return float32(function)(flow.widened(x), *args, **kwargs)

        kind = known.get(function)
        if kind is None:
            kind = known[function] = kind_of(function, x, *args, **kwargs)
        if kind == "plain":
            return function(x, *args, **kwargs)
        if kind == "remembers":
            result = function(x, *args, **kwargs)
            return x if result is x else flow.remember(result, exact)
        rounds = kind == "inside" or in_cell
        hand = flow.rounded if rounds else flow.hand_on
        return hand(exact(), dtypes.dtype_of(x))

    return guarded


def kind_of(function: Callable, *args: Any, **kwargs: Any) -> str:
    """Return how to guard ``function``, which is to be called with these arguments.

    Returns:
        "float32" or "inside" for one that has to compute in float32, and of which Keras
        would round the result too much or not; "remembers" for one that may compute in
        16 bits; "plain" for one that has to be left alone.
    """
    if precision_lists.is_float32_function(function):
        return "float32"
    if precision_lists.is_steep_function(function):
        return "inside"
    if precision_lists.is_activation(function):
        return "remembers"
    operations = private.tracing.operations_of(function, *flow.widened(args), **kwargs)
    if operations is None:
        return "plain"
    return "float32" if operations & precision_lists.FLOAT32_OPERATIONS else "remembers"
