"""What keeps a low-precision layer safe whose products stay in low precision.

A guard replaces a part of one layer: its activation function, its softmax, its
regularizer. It computes in float32 what comes in 16 bits and leaves anything else
alone, so that a guarded layer under a float32 policy does what it always did. Nothing
of it is saved: who loads a model puts the guards back (`keras_mp.load_model`,
`keras_mp.compile`).
"""

from keras_mp.guards import attention, functions, inputs, outputs, weights

#: Each guard with the name by which reports call it: ``guard(layer)`` returns whether
#: there was anything to guard, and changes nothing the second time.
GUARDS = {
    "activation": functions.guard_activations,
    "activity regularizer": functions.guard_regularizer,
    "add_loss": functions.guard_add_loss,
    "all of it": functions.guard_call,
    "inputs": inputs.guard,
    "scores and softmax": attention.guard,
    "weights": weights.guard,
}


def guard(layer):
    """Put on ``layer`` the guards that it needs; the sublayers stay as they are."""
    for put in GUARDS.values():
        put(layer)


def names(layer):
    """Return the names of the guards that ``layer`` has, as a list."""
    return [name for name, put in GUARDS.items() if put(layer)]


def is_whole(layer):
    """Return whether the guards of ``layer`` are for its sublayers as well."""
    return attention.is_guarded_class(layer)


keep_inputs = inputs.guard
widen_outputs = outputs.widen
