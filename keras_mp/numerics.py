"""Arithmetic on lists of gradients in which None and sparse entries are first class.

A gradient is a dense tensor, None (the variable did not take part), or a sparse
gradient: rows of a large variable, such as TensorFlow's ``IndexedSlices``, known here
by its ``values`` and ``indices``. Sparse gradients stay sparse.
"""

import keras
from keras import ops


def is_sparse(gradient):
    """Return whether ``gradient`` holds only some rows of its variable."""
    return hasattr(gradient, "values") and hasattr(gradient, "indices")


def dense_parts(gradients):
    """Return the tensors that hold the numbers of ``gradients``; None is left out."""
    return [
        gradient.values if is_sparse(gradient) else gradient
        for gradient in gradients
        if gradient is not None
    ]


def overwrites(variable):
    """Return whether a "gradient" of ``variable`` is its next value.

    So it is with the scaling factors of float8 layers.
    """
    return getattr(variable, "overwrite_with_gradient", False)


def all_finite(gradients):
    """Return a scalar bool tensor: no gradient holds an inf or a NaN.

    Args:
        gradients: List of float tensors of any shape, sparse gradients and None.

    Does not synchronise with the device.
    """
    finite = [ops.all(ops.isfinite(part)) for part in dense_parts(gradients)]
    return ops.all(ops.stack(finite)) if finite else ops.convert_to_tensor(True)


def largest(gradients):
    """Return the largest absolute value in ``gradients`` as a float32 scalar tensor.

    0 where there is no gradient; meaningless where one holds a NaN.
    """
    sizes = [
        ops.max(ops.abs(ops.cast(part, "float32")), initial=0.0)
        for part in dense_parts(gradients)
    ]
    return ops.max(ops.stack(sizes)) if sizes else ops.convert_to_tensor(0.0)


def map_values(function, gradient):
    """Return ``gradient`` with ``function`` applied to the tensor of its numbers."""
    if not is_sparse(gradient):
        return function(gradient)
    values = function(gradient.values)
    return type(gradient)(values, gradient.indices, gradient.dense_shape)


def unscale(gradient, scale):
    """Return ``gradient`` divided by ``scale``, in the gradient's dtype.

    Args:
        gradient: Float tensor, sparse gradient or None.
        scale: Scalar float32 tensor or variable; None for 1.
    """
    if gradient is None or scale is None:
        return gradient
    # Not in float16, where a scale of 2**16 is inf.
    return map_values(lambda v: ops.cast(ops.divide(v, scale), v.dtype), gradient)


def rescale(gradient, scale):
    """Return ``gradient`` times ``scale``, in the gradient's dtype; None stays None."""
    if gradient is None:
        return None
    return map_values(lambda v: ops.cast(ops.multiply(v, scale), v.dtype), gradient)


def is_float(tensor):
    """Return whether ``tensor`` is a tensor, symbolic or not, of a float dtype."""
    is_tensor = ops.is_tensor(tensor) or isinstance(tensor, keras.KerasTensor)
    return is_tensor and keras.backend.is_float_dtype(tensor.dtype)


def cast_floats(structure, dtype):
    """Return ``structure`` with every float tensor cast to ``dtype``.

    Integer and bool tensors, None and anything that is no tensor stay as they are.
    """
    return keras.tree.map_structure(
        lambda leaf: ops.cast(leaf, dtype) if is_float(leaf) else leaf, structure
    )
