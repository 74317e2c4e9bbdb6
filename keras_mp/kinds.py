"""Kinds of gradients: a dense tensor, None, or rows of a large variable.

None says that the variable did not take part. A sparse gradient, such as TensorFlow's
``IndexedSlices``, is known by its ``values`` and ``indices``, and stays sparse.
"""

from collections.abc import Callable, Iterable
from typing import Any


def is_sparse(gradient: Any) -> bool:
    """Return whether ``gradient`` holds only some rows of its variable."""
    return hasattr(gradient, "values") and hasattr(gradient, "indices")


def dense_parts(gradients: Iterable[Any]) -> list[Any]:
    """Return the tensors that hold the numbers of ``gradients``; None is left out."""
    return [
        gradient.values if is_sparse(gradient) else gradient
        for gradient in gradients
        if gradient is not None
    ]


def overwrites(variable: Any) -> bool:
    """Return whether a "gradient" of ``variable`` is its next value.

    It is for the scaling factors of float8 layers.
    """
    return getattr(variable, "overwrite_with_gradient", False)


def map_values(function: Callable[[Any], Any], gradient: Any) -> Any:
    """Return ``gradient`` with ``function`` applied to the tensor of its numbers."""
    if not is_sparse(gradient):
        return function(gradient)
    values = function(gradient.values)
    return type(gradient)(values, gradient.indices, gradient.dense_shape)
