"""Functions and operations that 16 bits are too few for."""

import inspect
from typing import Any

from keras import activations

from keras_mp.precision_lists.sources import Source, listed

#: Activation functions that overflow or lose most of their digits in 16 bits, and whose
#: results do so too: the small probabilities of a softmax, and exponentials.
FLOAT32_FUNCTIONS = listed(
    activations,
    {
        Source.TORCH: (
            "exponential",
            "log_softmax",
            "softmax",
        ),
    },
)

#: Activation functions that overflow or lose most of their digits on the way to results
#: that 16 bits hold.
INSIDE_FUNCTIONS = listed(
    activations,
    {
        Source.TORCH: ("softplus",),
        Source.COMPOSED: (
            "elu",
            "log_sigmoid",
            "selu",
            "sparsemax",
        ),
        Source.MEASURED: (
            "softsign",
            "squareplus",
            "tanh_shrink",
        ),
    },
)

# Activation functions that change no number but to 0 or a bound.
_MOVING_FUNCTIONS = listed(
    activations,
    {
        Source.KERAS: (
            "hard_shrink",
            "hard_tanh",
            "linear",
            "relu",
            "relu6",
        ),
    },
)

#: TensorFlow's operations that overflow or lose most of their digits in 16 bits. A
#: function of unknown name that uses one computes in float32.
FLOAT32_OPERATIONS = frozenset(
    listed(
        None,
        {
            Source.TENSORFLOW: (
                "Exp",
                "Expm1",
                "L2Loss",
                "Mean",
                "Pow",
                "Sum",
            ),
            Source.TORCH: (
                "Acos",
                "Asin",
                "Cosh",
                "Cumprod",
                "Cumsum",
                "Erfinv",
                "Log",
                "Log1p",
                "LogSoftmax",
                "Prod",
                "Reciprocal",
                "Rsqrt",
                "Sinh",
                "Softmax",
                "Softplus",
                "Tan",
            ),
            Source.COMPOSED: (
                "Elu",
                "Ndtri",
                "Selu",
                "SquaredDifference",
            ),
            Source.MEASURED: ("Softsign",),
        },
    )
)

#: Operations of `keras.ops` likewise, by the names of their classes.
FLOAT32_OPS = frozenset(
    listed(
        None,
        {
            Source.TENSORFLOW: ("Mean",),
            Source.TORCH: (
                "Arccos",
                "Arcsin",
                "Cosh",
                "Cumprod",
                "Cumsum",
                "Erfinv",
                "Exp",
                "Expm1",
                "Log",
                "Log10",
                "Log1p",
                "Log2",
                "LogSoftmax",
                "Logsumexp",
                "Norm",
                "Normalize",
                "Power",
                "Prod",
                "Reciprocal",
                "Rsqrt",
                "Sinh",
                "Softmax",
                "Softplus",
                "Sum",
                "Tan",
            ),
            Source.COMPOSED: (
                "Average",
                "Elu",
                "Exp2",
                "LogSigmoid",
                "Logaddexp",
                "Selu",
                "SparsePlus",
                "Sparsemax",
                "Std",
                "Var",
            ),
            Source.MEASURED: (
                "Softsign",
                "Squareplus",
                "TanhShrink",
            ),
        },
    )
)

_ACTIVATIONS = tuple(filter(inspect.isfunction, vars(activations).values()))


def is_float32_function(function: Any) -> bool:
    """Return whether ``function``, decorated or not, is in `FLOAT32_FUNCTIONS`."""
    return _is_one_of(FLOAT32_FUNCTIONS, function)


def is_steep_function(function: Any) -> bool:
    """Return whether ``function``, decorated or not, is in either of the two."""
    return _is_one_of(FLOAT32_FUNCTIONS + INSIDE_FUNCTIONS, function)


def is_activation(function: Any) -> bool:
    """Return whether ``function``, decorated or not, is an activation of Keras's."""
    return _is_one_of(_ACTIVATIONS, function)


def moves_only(function: Any) -> bool:
    """Return whether ``function`` changes no number but to 0 or a bound."""
    return _is_one_of(_MOVING_FUNCTIONS, function)


def _is_one_of(functions, function):
    return callable(function) and any(
        inspect.unwrap(function) is each for each in functions
    )
