"""What makes a layer safe in low precision while its products stay in low precision.

A guard replaces a part of one layer: its activation function, its softmax, its
regularizer. It computes in float32 if its input is in 16 bits, and otherwise changes
nothing, so that a guarded layer under a float32 policy does what it always did. Guards
are not saved: `keras_mp.load_model` and `keras_mp.compile` put them on again.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_mp import precision_lists, private
from keras_mp.guards import (
    activations,
    attention,
    biases,
    containers,
    functions,
    kept,
    model_steps,
    operations,
    own,
    own_islands,
    products,
    weights,
)
from keras_mp.speed import normalization


class Guard(NamedTuple):
    """One guard, as functions of a layer. Only ``put`` changes the layer, and once."""

    is_needed: Callable  # whether there is anything to guard
    is_on: Callable  # of a layer that needs it: whether it is guarded
    put: Callable


#: Each guard with the name by which reports call it.
GUARDS = {
    "activation": Guard(
        activations.has_steep, activations.are_guarded, activations.guard
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
        normalization.is_guarded,
        normalization.guard,
    ),
    "scores and softmax": Guard(
        attention.is_guarded_class, attention.is_guarded, attention.guard
    ),
    "weights": Guard(weights.computes_with_weights, weights.is_guarded, weights.guard),
}


def guard(layer: keras.layers.Layer, strict: bool = False) -> None:
    """Put on ``layer`` the guards that it needs; the sublayers stay as they are.

    Args:
        layer: A layer that computes in low precision.
        strict: Whether an error about dtypes in code of the user's own is raised.
    """
    if products.is_product(layer):
        biases.guard(layer)  # first, so that it gets the activation that others guard
    for one in GUARDS.values():
        if one.is_needed(layer):
            one.put(layer)
    if activations.has_any(layer):
        activations.guard(layer)
    if products.is_product(layer):
        products.guard(layer)
    if private.layers.has_own_call(layer):
        own_islands.set_strict(layer, strict)
    guard_flow(layer)


def guard_flow(layer: keras.layers.Layer) -> None:
    """Make ``layer``, and layers inside it, return the dtype for their reader.

    `keras_mp.flow` says which dtype that is.
    """
    if hasattr(layer, "outer_policy"):  # a float32 island hands back what is around it
        return
    if private.layers.has_own_call(layer):
        own.guard_own(layer)
    elif isinstance(layer, keras.layers.Pipeline):
        own.guard_graph(layer)  # its layers follow one another as in a graph
    elif private.graphs.has_graph(layer):
        own.guard_graph(layer)
        operations.guard_operations(layer)
    elif kept.dtype_around(layer) is not None:
        kept.guard_kept(layer)
    elif isinstance(layer, precision_lists.EMBEDDINGS):
        kept.guard_reader(layer)
    elif private.layers.sublayers(layer):
        own.guard_wrapper(layer)
    if isinstance(layer, keras.Model):
        model_steps.guard_steps(layer, of_keras_only=True)


def guard_own(layer: keras.layers.Layer, strict: bool) -> None:
    """Guard the code of the user's own in ``layer``, which need not be built."""
    own_islands.set_strict(layer, strict)
    own.guard_own(layer)


def names(layer: keras.layers.Layer) -> list[str]:
    """Return the names of the guards that ``layer`` needs, as a list."""
    return [name for name, one in GUARDS.items() if one.is_needed(layer)]


def missing(layer: keras.layers.Layer) -> list[str]:
    """Return the names of the guards that ``layer`` needs and has not, as a list."""
    return [name for name in names(layer) if not GUARDS[name].is_on(layer)]


def present(layer: keras.layers.Layer) -> list[str]:
    """Return the names of the guards that ``layer`` needs and has, as a list."""
    return [name for name in names(layer) if GUARDS[name].is_on(layer)]


def covers_sublayers(layer: keras.layers.Layer) -> bool:
    """Return whether the guards of ``layer`` cover its sublayers as well."""
    return attention.is_guarded_class(layer)


guard_follower = kept.guard_follower
keep = kept.keep
as_in_float32 = kept.as_in_float32
dtype_around = kept.dtype_around
takes_raw_data = kept.takes_raw_data
keep_inputs = containers.guard_with
island_reason = own_islands.reason
are_steps_guarded = model_steps.are_guarded
do_steps_get_16_bits = do_steps_get_16_bits = model_steps.get_16_bits
called_in_step = model_steps.called_in_step
guard_steps = model_steps.guard_steps
fall_back = model_steps.fall_back
set_exact_heads = own.set_exact_heads
