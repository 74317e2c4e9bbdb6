"""Predictions in float32, and a trace of them without low precision."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_mp import private

_LOW = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}


def predict(model: keras.Model, arguments: Iterable[Any]) -> Any:
    """Return what ``model``, inside `in_float32`, predicts for a list of arguments.

    Variables keep their dtype. Those in 16 bits, under a policy such as ``"float16"``
    that is not mixed, are cast to float32 as they are read.
    """
    with private.variables.variables_read_in("float32"):
        return model(*arguments, training=False)


def traced(model: keras.Model, specs: list[Any]) -> Any:
    """Return a `tf.function` of the model's predictions that has no low precision.

    Args:
        model: A Keras model inside `in_float32`.
        specs: A list with a structure of `tf.TensorSpec` per argument of ``call``.

    Raises:
        ValueError: An operation has a float16 or bfloat16 dtype of its own, or the
            model cannot be called with ``specs``.
    """

    def serve(*arguments: Any) -> Any:
        return predict(model, arguments)

    function = tf.function(serve, input_signature=specs, autograph=False)
    try:
        graph = function.get_concrete_function().graph
    except TypeError as error:
        raise ValueError(
            f"keras_mp.export: model '{model.name}' cannot be called with the inputs "
            f"{specs}. Pass input_signature=[...] with one keras.InputSpec, or a "
            "structure of them, for each argument of its `call`."
        ) from error
    low = [node.name for node in _nodes(graph) if _computes_low(node)]
    if low:
        shown = ", ".join(low[:3]) + (", ..." if len(low) > 3 else "")
        raise ValueError(
            f"keras_mp.export: model '{model.name}' has {len(low)} operations that are "
            f"in float16 or bfloat16 whatever its policy: {shown}. Layers of your own "
            "should cast to `self.compute_dtype` as they are called, not to a fixed "
            "dtype or to one they kept from when they were built."
        )
    return function


def _nodes(graph: Any) -> Iterator[Any]:
    definition = graph.as_graph_def()
    functions = (function.node_def for function in definition.library.function)
    return itertools.chain(definition.node, *functions)


def _computes_low(node: Any) -> bool:
    """Return whether a node computes in low precision.

    Reading a variable or a constant is no computation: what computes with its value in
    low precision is another node.
    """
    if node.op in ("ReadVariableOp", "Const"):
        return False
    if node.op == "Cast":
        return node.attr["DstT"].type in _LOW
    return any(attribute.type in _LOW for attribute in node.attr.values())
