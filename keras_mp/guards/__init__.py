"""What keeps a low-precision layer safe whose products stay in low precision.

A guard replaces a part of one layer: its activation function, its softmax, its
regularizer. It computes in float32 what comes in 16 bits and leaves anything else
alone, so that a guarded layer under a float32 policy does what it always did. Nothing
of it is saved: who loads a model puts the guards back (`keras_mp.load_model`,
`keras_mp.compile`).
"""

from collections.abc import Callable
from typing import NamedTuple

from keras_mp.guards import (
    attention,
    containers,
    functions,
    normalization,
    outputs,
    weights,
)


class Guard(NamedTuple):
    """One guard, as functions of a layer. Only ``put`` changes it, and only once."""

    is_needed: Callable  # whether there is anything to guard
    is_on: Callable  # of a layer that needs it: whether it is guarded
    put: Callable


#: Each guard with the name by which reports call it.
GUARDS = {
    "activation": Guard(
        functions.has_steep_activations,
        functions.are_activations_guarded,
        functions.guard_activations,
    ),
    "activity regularizer": Guard(
        functions.has_regularizer,
        functions.is_regularizer_guarded,
        functions.guard_regularizer,
    ),
    "add_loss": Guard(
        functions.may_add_losses,
        functions.is_add_loss_guarded,
        functions.guard_add_loss,
    ),
    "all of it": Guard(
        functions.computes_inside, functions.is_call_guarded, functions.guard_call
    ),
    "inputs": Guard(containers.holds_readers, containers.is_guarded, containers.guard),
    "normalization": Guard(
        normalization.is_batch_normalization,
        functions.is_call_guarded,
        normalization.guard,
    ),
    "scores and softmax": Guard(
        attention.is_guarded_class, attention.is_guarded, attention.guard
    ),
    "weights": Guard(
        weights.computes_with_weights, functions.is_call_guarded, weights.guard
    ),
}


def guard(layer):
    """Put on ``layer`` the guards that it needs; the sublayers stay as they are."""
    for one in GUARDS.values():
        if one.is_needed(layer):
            one.put(layer)


def names(layer):
    """Return the names of the guards that ``layer`` needs, as a list."""
    return [name for name, one in GUARDS.items() if one.is_needed(layer)]


def missing(layer):
    """Return the names of the guards that ``layer`` needs and has not, as a list."""
    return [name for name in names(layer) if not GUARDS[name].is_on(layer)]


def present(layer):
    """Return the names of the guards that ``layer`` needs and has, as a list."""
    return [name for name in names(layer) if GUARDS[name].is_on(layer)]


def is_whole(layer):
    """Return whether the guards of ``layer`` are for its sublayers as well."""
    return attention.is_guarded_class(layer)


keep_inputs = containers.guard_with
widen_outputs = outputs.widen
