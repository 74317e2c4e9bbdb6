"""A model under float32 for a while, and a trace that computes in nothing lower."""

import contextlib
import itertools

import keras
import tensorflow as tf

from keras_mp import dtypes, policies, private


@contextlib.contextmanager
def float32(model):
    """Have ``model`` compute in float32 inside the block, and leave no trace of it.

    In place, because a model of the user's own class has no copy that is sure to
    compute the same. State that a call changes, such as that of a
    stateful RNN or of random seeds, is put back too, and so is everything else after
    an exception.

    Raises:
        ValueError: A quantized layer computes in low precision.
    """
    layers = private.layers.walk(model)
    _check_quantized(layers)
    with (
        private.attributes.attributes_for_now(_changes(layers)),
        _state_kept(model.non_trainable_variables),
    ):
        for layer in layers:
            _renew_statistics(layer)
        yield


def _check_quantized(layers):
    for layer in layers:
        if layer.quantization_mode and dtypes.computes_low(layer):
            raise ValueError(
                f"keras_mp.export: layer '{layer.name}' is quantized "
                f"({layer.quantization_mode}) and computes in {layer.compute_dtype} in "
                "between, which is fixed then. Export the model as it was before "
                "model.quantize(...), or quantize it under a float32 policy: "
                "keras_mp.compile(model, ..., policy='float32') first."
            )


def _changes(layers):
    """Yield each object that asks for low precision, with what it is to have instead.

    Everything that the block may rebind is named, so that it is put back.
    """
    for layer in layers:
        # A trace appends tensors of its own to the layer's losses.
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


def _has_rounded_statistics(layer):
    low = dtypes.LOW_PRECISION
    return (
        isinstance(layer, keras.layers.Normalization)
        and layer.built
        and (keras.backend.standardize_dtype(layer.mean.dtype) in low)
    )


def _renew_statistics(layer):
    """Have a Normalization layer hold its statistics in its present compute dtype.

    It rounds them once: those it adapted to in `finalize_state`, those it was given
    as it is built.
    """
    if not _has_rounded_statistics(layer):
        return
    if layer.input_mean is None:
        layer.finalize_state()
    else:
        layer.build(layer.get_build_config()["input_shape"])


@contextlib.contextmanager
def _state_kept(variables):
    """Give ``variables`` back the values they had, those that changed."""
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            # Bytes, because NaN differs from itself. Untouched ones are not written:
            # replicas may hold values of their own, which differ from their mean.
            if keras.ops.convert_to_numpy(variable).tobytes() != value.tobytes():
                variable.assign(value)


def predict(model, arguments):
    """Return what ``model``, inside `float32`, predicts for a list of arguments.

    Variables stay in their dtype: those in float16, of a policy that is not mixed, are
    read as float32.
    """
    with private.variables.variables_read_in("float32"):
        return model(*arguments, training=False)


def traced(model, specs):
    """Return a `tf.function` of the model's predictions, and nothing below float32.

    Args:
        model: A Keras model inside `float32`.
        specs: A list with a structure of `tf.TensorSpec` per argument of ``call``.

    Raises:
        ValueError: An operation computes in float16 or bfloat16 whatever the policy, or
            the model cannot be called with ``specs``.
    """

    def serve(*arguments):
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


def _nodes(graph):
    definition = graph.as_graph_def()
    functions = (function.node_def for function in definition.library.function)
    return itertools.chain(definition.node, *functions)


_LOW = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}


def _computes_low(node):
    """Return whether a node has low precision for more than reading what is stored.

    A constant that was rounded as the model was made is a number like any other: what
    computes with it in low precision is a node of its own.
    """
    if node.op in ("ReadVariableOp", "Const"):
        return False
    if node.op == "Cast":
        return node.attr["DstT"].type in _LOW
    return any(attribute.type in _LOW for attribute in node.attr.values())
