"""Layers that 16 bits are too few for."""

from collections.abc import Iterator, Sequence

import keras

from keras_mp import dtypes, guards, policies, private
from keras_mp.lint.finding import Finding

_WHY = {
    "activation": "its activation overflows or loses digits in {}",
    "activity regularizer": "its activity regularizer adds up in {}",
    "all of it": "it computes in {}, which is too short for its sums or powers",
    "inputs": "it rounds what comes in to {} before layers inside read ids or data",
    "scores and softmax": "its scores and its softmax are computed in {}",
    "weights": "it rounds its weights to {} in every step",
}


def find(located: Sequence[tuple[keras.layers.Layer, str]]) -> Iterator[Finding]:
    """Yield findings on layers that compute in 16 bits and are not safe in them."""
    inside = inside_guarded(located)
    for layer, path in located:
        low = dtypes.computes_low(layer)
        if low and policies.is_convertible(layer) and id(layer) not in inside:
            fix = "make it safe with keras_mp.compile or keras_mp.convert"
            if not private.layers.sublayers(layer) or guards.covers_sublayers(layer):
                fix += f", or keep it in float32: Policy(..., float32=['{layer.name}'])"
            for why in _reasons(layer, path):
                yield Finding(
                    "warning",
                    "sensitive",
                    path,
                    why.format(layer.compute_dtype),
                    fix,
                )


def find_islands(
    located: Sequence[tuple[keras.layers.Layer, str]],
) -> Iterator[Finding]:
    """Yield findings on layers whose code failed in 16 bits."""
    for layer, path in located:
        if guards.island_reason(layer):
            yield Finding(
                "note",
                "island",
                path,
                f"computes in float32, since {guards.island_reason(layer)}",
                "cast what it mixes to `self.compute_dtype`",
            )


def inside_guarded(located: Sequence[tuple[keras.layers.Layer, str]]) -> set[int]:
    """Return the ids of layers inside layers whose guards cover them."""
    whole = [layer for layer, _ in located if guards.covers_sublayers(layer)]
    return {id(inner) for layer in whole for inner in private.layers.walk(layer)[1:]}


def _reasons(layer, path):
    """Yield why ``layer`` is not safe, by what keras_mp would do to it."""
    found = policies.list_of(layer, path)
    if found == "float32":
        yield f"{type(layer).__name__} is not safe in {{}}"
    elif found is None:
        for name in guards.missing(layer):
            # Whether layers of the user's own add losses at all is not known.
            if name in _WHY and (name != "inputs" or _takes_floats(layer)):
                yield _WHY[name]


def _takes_floats(layer):
    inputs = getattr(layer, "inputs", None) or ()
    return any(keras.backend.is_float_dtype(tensor.dtype) for tensor in inputs)
