"""What an error of Keras or TensorFlow says, and which layer it is about."""

import os
import re
import sys

import keras

from keras_mp.private import layers

_LOW_NAMES = re.compile(r"float16|\bhalf\b|DT_HALF|DT_BFLOAT16")

_OTHERS = re.compile(
    r"float32|float64|\bfloat\b|complex|allowed values|OpKernel|Unsupported|not inexact"
)

_LIBRARIES = [
    os.path.dirname(str(module.__file__)) + os.sep
    for module in (keras, sys.modules[__name__.split(".")[0]])
]


def message_of(error: BaseException) -> str:
    """Return what ``error`` says, without the arguments that Keras adds to it."""
    message = str(error).split("Arguments received by")[0]
    message = re.sub(r"\x1b\[\d+m", "", message).strip()
    return message.split("\n\n", 1)[-1].strip()


def summary_of(error: BaseException) -> str:
    """Return the first line of what ``error`` says, without its full stop."""
    return message_of(error).splitlines()[0][:200].rstrip(".")


def of_operations() -> tuple[type[Exception], ...]:
    """Return what TensorFlow's operations raise of tensors that they cannot take."""
    if keras.backend.backend() != "tensorflow":
        return ()
    import tensorflow as tf

    return (
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
        tf.errors.UnimplementedError,
    )


def is_dtype_error(error: BaseException) -> bool:
    """Return whether ``error`` says that dtypes do not match, one being of 16 bits."""
    kinds = (TypeError, ValueError, *of_operations())
    message = message_of(error)
    return (
        isinstance(error, kinds)
        and bool(_LOW_NAMES.search(message))
        and bool(_OTHERS.search(re.sub(r"b?float16", "", message)))
    )


def without_kernel(
    model: keras.Model, error: BaseException
) -> keras.layers.Layer | None:
    """Return the layer in ``model`` that an operation without a kernel is part of.

    TensorFlow finds out only as a step is about to run, and names the node. None if
    ``error`` is another one.
    """
    node = re.search(r"No OpKernel was registered.*node ([^\s}]+)", str(error), re.S)
    if node is None:
        return None
    names = [re.sub(r"_\d+$", "", name) for name in node[1].split("/")]
    own = [layer for layer in layers.walk(model) if layers.has_own_call(layer)]
    inside = [each for each in own if re.sub(r"_\d+$", "", each.name) in names]
    return inside[-1] if inside else None


def is_library(filename: str) -> bool:
    """Return whether a source file is keras_mp's or an installed package's."""
    parts = filename.replace(os.sep, "/").split("/")
    installed = {"site-packages", "dist-packages"} & {*parts}
    return bool(installed) or filename.startswith(tuple(_LIBRARIES))
