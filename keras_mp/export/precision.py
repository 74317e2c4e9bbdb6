"""A model that computes in float32 for a while, and a trace without low precision."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_mp import dtypes, policies, private

_LOW = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}


@contextlib.contextmanager
def float32(model: keras.Model) -> Iterator[None]:
    """Make ``model`` compute in float32 inside the block, and as before after it.

    In place, because a copy of a model of the user's own class may compute something
    else. State that a call changes, such as that of a stateful RNN or of random seeds,
    is restored too, also after an exception.

    Raises:
        ValueError: A layer that computes in low precision is quantized.
    """
    layers = private.layers.walk(model)
    _check_quantized(layers)
    with (
        private.attributes.attributes_for_now(_changes(layers)),
        _state_kept(model.non_trainable_variables),
    ):
        for layer in layers:
            _recompute_statistics(layer)
        yield


def _check_quantized(layers: Iterable[keras.layers.Layer]) -> None:
    for layer in layers:
        if layer.quantization_mode and dtypes.computes_low(layer):
            raise ValueError(
                f"keras_mp.export: layer '{layer.name}' is quantized "
                f"({layer.quantization_mode}) and computes in {layer.compute_dtype} in "
                "between, which quantization fixes. Export the model as it was before "
                "model.quantize(...), or quantize it under a float32 policy: "
                "keras_mp.compile(model, ..., policy='float32') first."
            )


def _changes(
    layers: Iterable[keras.layers.Layer],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield objects with the attributes that they have during an export, as a dict.

    It includes those that the block assigns itself, so that they are restored.
    """
    for layer in layers:
        # A trace adds its tensors to the layer's losses.
        yield from private.attributes.losses_apart(layer)
        if isinstance(layer, keras.layers.InputLayer):
            yield from private.attributes.input_in(layer, "float32")
        elif hasattr(layer, "outer_policy"):
            yield layer, {"outer_policy": policies.FLOAT32}
            if layer.output_dtype in dtypes.LOW_PRECISION:
                yield layer, {"output_dtype": "float32"}
        elif dtypes.computes_low(layer):
            yield from private.attributes.policy_as(layer, policies.FLOAT32)
        yield from private.attributes.operations_in(layer, "float32")
        if _has_rounded_statistics(layer):
            yield layer, {"mean": layer.mean, "variance": layer.variance}


def _has_rounded_statistics(layer: keras.layers.Layer) -> bool:
    if not isinstance(layer, keras.layers.Normalization) or not layer.built:
        return False
    return keras.backend.standardize_dtype(layer.mean.dtype) in dtypes.LOW_PRECISION


def _recompute_statistics(layer: keras.layers.Layer) -> None:
    """Make a Normalization layer round its statistics to its present compute dtype.

    Keras rounds them once: in `finalize_state` those that it adapted to, in `build`
    those that it was given.
    """
    if not _has_rounded_statistics(layer):
        return
    if layer.input_mean is None:
        layer.finalize_state()
    else:
        layer.build(layer.get_build_config()["input_shape"])


@contextlib.contextmanager
def _state_kept(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Restore the values of the ``variables`` that the block changed."""
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            # Compared as bytes, because NaN differs from itself. Unchanged variables
            # are not written: each replica may hold a value of its own, and this is
            # their mean.
            if keras.ops.convert_to_numpy(variable).tobytes() != value.tobytes():
                variable.assign(value)


def predict(model: keras.Model, arguments: Iterable[Any]) -> Any:
    """Return what ``model``, inside `float32`, predicts for a list of arguments.

    Variables keep their dtype. Those in 16 bits, under a policy such as ``"float16"``
    that is not mixed, are cast to float32 as they are read.
    """
    with private.variables.variables_read_in("float32"):
        return model(*arguments, training=False)


def traced(model: keras.Model, specs: list[Any]) -> Any:
    """Return a `tf.function` of the model's predictions that has no low precision.

    Args:
        model: A Keras model inside `float32`.
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
