"""The copies of a variable on the replicas of this machine, which may differ."""

import keras
import numpy as np


def read_copies(variable: keras.Variable) -> list[np.ndarray]:
    """Return the value that each replica of this machine has of ``variable``.

    A list of one array if all replicas have the same. Synchronises with the device.
    """
    first, *others = [_array(each) for each in _copies(variable)]
    same = all(each.tobytes() == first.tobytes() for each in others)
    return [first] if same else [first, *others]


def assign_copies(variable: keras.Variable, values: list[np.ndarray]) -> None:
    """Give each replica of this machine its value of ``variable``.

    Args:
        variable: A Keras variable.
        values: One for each replica, or one for all.
    """
    copies = _copies(variable)
    if copies[0] is variable.value:
        variable.assign(values[0])
        return
    # Not by the variable itself, which would share a sum out among the replicas.
    for copy, value in zip(copies, values * (len(copies) // len(values)), strict=True):
        copy.assign(value)


def number_of_copies(variable: keras.Variable) -> int:
    """Return how many copies of ``variable`` this machine has."""
    return len(_copies(variable))


def _array(copy) -> np.ndarray:
    # NumPy 2 warns of how TensorFlow's variables become arrays otherwise.
    return copy.numpy() if hasattr(copy, "numpy") else np.asarray(copy)


def _copies(variable: keras.Variable) -> tuple:
    # The strategy of the variable, whatever scope this is called in.
    value = variable.value
    strategy = getattr(value, "distribute_strategy", None)
    if strategy is None:
        return (value,)
    return strategy.experimental_local_results(value)
