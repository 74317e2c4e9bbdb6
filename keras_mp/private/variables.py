"""The dtype that a variable is stored in, the one it is read in, and its values."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


def stored_dtype(variable: keras.Variable) -> str:
    """Return the dtype in which ``variable`` is stored, whatever it is read in."""
    return keras.backend.standardize_dtype(variable._dtype)


def values_of(variables: Sequence[keras.Variable]) -> list[Any]:
    """Return the present values of ``variables``, on this replica, as tensors.

    Values are shared, not copied, until a variable is assigned. `keras.ops` hands a
    TensorFlow variable back instead of reading it.
    """
    if keras.backend.backend() != "tensorflow":
        return [keras.ops.copy(variable) for variable in variables]
    import tensorflow as tf

    return [tf.convert_to_tensor(variable.value) for variable in variables]


def read(variable: keras.Variable) -> np.ndarray:
    """Return the value of ``variable``, of the first replica of this machine.

    Synchronises with the device. For what is read after each step: on TensorFlow by one
    operation, which takes a third of the time of Keras's way.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.ops.convert_to_numpy(variable)
    import tensorflow as tf

    value = variable.value
    strategy = getattr(value, "distribute_strategy", None)
    if strategy is not None:
        value = strategy.experimental_local_results(value)[0]
    return tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype).numpy()


def retype(variable: keras.Variable, dtype: str | None) -> None:
    """Give ``variable`` another dtype, its value cast.

    A Keras variable has its dtype for good. This is how a variable that is created
    without a value gets one, on every backend.
    """
    value = keras.ops.cast(variable.value, dtype)
    variable._dtype = dtype
    variable._initialize(value)


def variables_as_stored() -> contextlib.AbstractContextManager:
    """Return a context in which variables are read in the dtype they have.

    In a layer's ``call`` Keras casts what is read to the layer's compute dtype. It
    changes that for a whole layer only.
    """
    return variables_read_in(None)


def variables_read_in(dtype: str | None) -> contextlib.AbstractContextManager:
    """Return a context in which float variables are read in ``dtype``.

    Keras enters such a scope for layers of a mixed policy only, and exports no name
    for it.
    """
    modules = (sys.modules[base.__module__] for base in keras.Variable.__mro__)
    scopes = (getattr(module, "AutocastScope", None) for module in modules)
    return next(filter(None, scopes))(dtype)


def stacked(variables):
    """Return this replica's values of ``variables``, which have one shape, stacked."""
    import tensorflow as tf

    return tf.stack(
        [
            tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
            for variable in variables
        ]
    )


def add_to(variables, changes):
    """Add the items of ``changes``, a stacked tensor, to TensorFlow ``variables``.

    Under a strategy to this replica's only, whatever their aggregation.
    """
    import tensorflow as tf

    for variable, change in zip(variables, tf.unstack(changes), strict=True):
        tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=change)
