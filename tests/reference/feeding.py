"""Loss-scale states in every form in which a training loop may keep them."""

import keras
import numpy as np

#: Forms in which a caller may keep a state; the number is the width of its counts.
TENSOR_KINDS = ("tensors32", "tensors64")
KINDS = ("python", "numpy", "variables32", "variables64", *TENSOR_KINDS)


def is_count(value):
    return isinstance(value, np.integer)


def held(kind, state):
    """Return ``state``, as a rule's ``init`` makes it, in the form ``kind``."""
    if kind == "numpy":
        return state
    if kind == "python":
        return type(state)(*(value.item() for value in state))
    counts = "int64" if kind.endswith("64") else "int32"
    values = []
    for value in state:
        dtype = counts if is_count(value) else "float32"
        if kind.startswith("variables"):
            values.append(keras.Variable(value, dtype=dtype, trainable=False))
        else:
            values.append(keras.ops.convert_to_tensor(value, dtype=dtype))
    return type(state)(*values)


def numbers(state):
    """Return a state as a tuple of Python numbers."""
    # Adding 0 reads a variable; NumPy warns when it is handed the variable itself.
    return tuple(keras.ops.convert_to_numpy(value + 0).item() for value in state)


def dtypes(state):
    return tuple(keras.backend.standardize_dtype(value.dtype) for value in state)
