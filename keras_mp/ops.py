"""Operations in float32 on tensors of lower precision, for layers of your own.

`float32` does it for any function. The functions are those of `keras.ops` that overflow
or lose most of their digits in 16 bits: PyTorch's autocast runs the same in float32
(`torch.amp`, "CUDA Ops that can autocast to float32"), and TensorFlow's graph rewrite
denies them low precision.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import keras
from keras import ops

from keras_mp import casts, dtypes, private

Operation = Callable[..., Any]
Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def float32(function: Function, *, output_dtype: str | None = None) -> Function: ...
@overload
def float32(
    function: None = None, *, output_dtype: str | None = None
) -> Callable[[Function], Function]: ...
def float32(
    function: Callable[..., Any] | None = None, *, output_dtype: str | None = None
) -> Callable[..., Any]:
    """Decorate a function or a layer's ``call`` so that it computes in float32.

    Its float16 and bfloat16 arguments, tensors, arrays and variables in any structure
    of lists, tuples and dicts, are cast to float32; integers, bools, None and wider
    floats pass as they are. If all of its float arguments are in float16, or all in
    bfloat16, the floats it returns are cast back to that dtype. Masks stay on the
    tensors. Variables that it reads, a layer's weights, are not rounded to the layer's
    compute dtype meanwhile.

    Args:
        function: A function of tensors, symbolic ones too, or a method of a layer.
        output_dtype: None to cast back, or the float dtype in which to return floats:
            ``"float32"`` for a loss or an exponential, whose values may lie beyond
            65,504, the end of float16.

    Returns:
        A function with the same signature; without ``function``, a decorator.

    Raises:
        TypeError: ``function`` cannot be called, or is a layer.
        ValueError: ``output_dtype`` is not a float dtype.

    Does not synchronise with the device.

    Example:

    >>> @keras_mp.float32
    ... def distance(x, y):
    ...     return keras.ops.sqrt(keras.ops.sum(keras.ops.square(x - y), axis=-1))
    >>> x = keras.ops.full((1, 64), 300.0, dtype="float16")
    >>> float(distance(x, 0 * x)[0])  # the root of 5,760,000, which float16 has not
    2400.0
    >>> mse = keras_mp.float32(keras.losses.mean_squared_error, output_dtype="float32")
    >>> float(mse(x, 0 * x)[0])
    90000.0
    """
    if function is None:
        return functools.partial(float32, output_dtype=output_dtype)
    output_dtype = dtypes.checked_float_dtype("keras_mp.float32", output_dtype)
    if not callable(function) or isinstance(function, keras.layers.Layer):
        raise TypeError(
            "keras_mp.float32(function) needs a function or a method. Got "
            f"{function!r} of type {type(function).__name__}. For a layer use "
            "keras_mp.layers.Float32(layer)."
        )

    @functools.wraps(function)
    def in_float32(*args: Any, **kwargs: Any) -> Any:
        dtype = output_dtype
        if dtype is None:
            common = _common_dtype((args, kwargs))
            dtype = common if common in dtypes.LOW_PRECISION else None
        with private.variables.variables_as_stored():
            args, kwargs = keras.tree.map_structure(_widened, (args, kwargs))
            outputs = function(*args, **kwargs)
        return outputs if dtype is None else casts.cast_floats(outputs, dtype)

    return in_float32


def _common_dtype(structure: Any) -> str | None:
    """Return the dtype of a result of the floats in ``structure``; None without any."""
    found = list(filter(None, map(_float_dtype, keras.tree.flatten(structure))))
    return keras.backend.result_type(*found) if found else None


def _widened(leaf: Any) -> Any:
    low = _float_dtype(leaf) in dtypes.LOW_PRECISION
    return private.tensors.cast_with_mask(leaf, "float32") if low else leaf


def _float_dtype(leaf: Any) -> str | None:
    """Return the dtype of an array, tensor or variable if it is a float, else None."""
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        return None
    dtype = keras.backend.standardize_dtype(leaf.dtype)
    return dtype if keras.backend.is_float_dtype(dtype) else None


def _in_float32(name: str) -> Operation:
    """Return the operation of `keras.ops` by that name, computed in float32."""
    function = float32(getattr(ops, name))
    function.__module__ = __name__
    function.__doc__ = (
        f"`keras.ops.{name}`, computed in float32 if its arguments are in float16 or "
        "bfloat16, and returned in their dtype."
    )
    return function


# Sums of exponentials.
softmax: Operation = _in_float32("softmax")
log_softmax: Operation = _in_float32("log_softmax")
logsumexp: Operation = _in_float32("logsumexp")
softplus: Operation = _in_float32("softplus")

# Sums and products.
sum: Operation = _in_float32("sum")
cumsum: Operation = _in_float32("cumsum")
prod: Operation = _in_float32("prod")
cumprod: Operation = _in_float32("cumprod")
mean: Operation = _in_float32("mean")
average: Operation = _in_float32("average")

# Sums of squares.
var: Operation = _in_float32("var")
std: Operation = _in_float32("std")
norm: Operation = _in_float32("norm")
normalize: Operation = _in_float32("normalize")

# Steep functions.
exp: Operation = _in_float32("exp")
expm1: Operation = _in_float32("expm1")
log: Operation = _in_float32("log")
log1p: Operation = _in_float32("log1p")
log2: Operation = _in_float32("log2")
log10: Operation = _in_float32("log10")
power: Operation = _in_float32("power")
reciprocal: Operation = _in_float32("reciprocal")
rsqrt: Operation = _in_float32("rsqrt")
arccos: Operation = _in_float32("arccos")
arcsin: Operation = _in_float32("arcsin")
cosh: Operation = _in_float32("cosh")
sinh: Operation = _in_float32("sinh")
tan: Operation = _in_float32("tan")
erfinv: Operation = _in_float32("erfinv")
