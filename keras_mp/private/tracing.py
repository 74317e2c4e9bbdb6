"""TensorFlow graphs while they are traced: who compiles them, what a tensor is from."""

import inspect

import keras


def operations_of(function, *args, **kwargs):
    """Return the types of TensorFlow's operations that ``function`` uses, as a set.

    The function is traced with tensors of these shapes and dtypes, and not run. Returns
    None if that fails, or with another backend.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    def spec(leaf):
        return tf.TensorSpec(leaf.shape, leaf.dtype) if tf.is_tensor(leaf) else leaf

    try:
        traced = tf.function(function, autograph=False).get_concrete_function(
            *tf.nest.map_structure(spec, args), **tf.nest.map_structure(spec, kwargs)
        )
    except Exception:
        return None
    graph = traced.graph.as_graph_def()
    bodies = [graph.node, *(inner.node_def for inner in graph.library.function)]
    return {node.op for body in bodies for node in body}


def functions_of(graph, op):
    """Return the graphs of the functions that ``op`` in ``graph`` calls or may call.

    The public definitions of a graph's functions have no shapes. `_get_function`, which
    TensorFlow differentiates functions with, gives their graphs; it is the same in
    TensorFlow 2.18 and 2.21.
    """
    return [
        graph._get_function(attribute.func.name).graph
        for attribute in op.node_def.attr.values()
        if attribute.HasField("func")
    ]


def as_written(function):
    """Keep AutoGraph from rewriting ``function`` in a user's ``tf.function``.

    AutoGraph leaves TensorFlow's and Keras's code as it is, but not other packages'.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def in_xla():
    """Return whether this code is being traced for XLA, which no public API tells."""
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() == "jax"
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def before_cast(tensor):
    """Return the float16 or bfloat16 tensor that ``tensor`` was cast from, or itself.

    The source holds the same numbers in less memory. (A cast from bfloat16 to float16
    may overflow, and does not count.) A cast whose result nobody uses is not run.
    """
    operation = _operation(tensor)
    if operation is None or operation.type != "Cast":
        return tensor
    (source,) = operation.inputs
    widened = source.dtype.is_floating and source.dtype.size == 2 < tensor.dtype.size
    return source if widened else tensor


def before_unstack(first, *others):
    """Return the tensor that ``first`` was unstacked from, or None.

    Args:
        first: A tensor.
        *others: If given, all tensors must be the outputs of one operation, in order
            and without one missing.
    """
    operation = _operation(first)
    if operation is None or operation.type != "Unpack" or operation.get_attr("axis"):
        return None
    outputs = operation.outputs
    if others and list(map(id, outputs)) != list(map(id, (first, *others))):
        return None
    return operation.inputs[0]


#: TensorFlow's operations that move numbers and change none.
_MOVES = {
    "BroadcastTo",
    "ConcatV2",
    "ExpandDims",
    "GatherV2",
    "Identity",
    "Pack",
    "Reshape",
    "ReverseV2",
    "Slice",
    "Split",
    "SplitV",
    "Squeeze",
    "StopGradient",
    "StridedSlice",
    "Tile",
    "Transpose",
    "Unpack",
}


def before_rounding(tensor, known):
    """Return the numbers of ``tensor`` before they were rounded to 16 bits, or None.

    In a graph that is being traced, TensorFlow knows what a tensor was cast from. If it
    was sliced, reshaped or joined since, the same is done to the source. Of an eager
    tensor nothing is known.

    Args:
        tensor: A tensor.
        known: ``known(tensor)`` returns the source of a tensor that is recorded
            elsewhere, or None.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    source = known(tensor)
    if source is not None:
        return source
    operation = _operation(tensor)
    if operation is None or not tensor.dtype.is_floating:
        return None
    if operation.type == "Cast":
        (source,) = operation.inputs
        if not source.dtype.is_floating:
            return None
        if source.dtype.size > tensor.dtype.size == 2:
            return source
        return before_rounding(source, known) if source.dtype.size == 2 else None
    if operation.type not in _MOVES:
        return None
    inputs = list(operation.inputs)
    moved = [before_rounding(each, known) for each in inputs]
    if all(each is None for each in moved):
        return None
    return _again(operation, inputs, moved)[tensor.value_index]


def _again(operation, inputs, moved):
    """Return the outputs of ``operation`` on what is ``moved`` of its ``inputs``."""
    import tensorflow as tf

    sources = [
        given if source is None else source
        for given, source in zip(inputs, moved, strict=True)
    ]
    # What is joined with a float32 tensor is in float32 as well.
    sources = [
        tf.cast(source, "float32")
        if source.dtype.is_floating and source.dtype.size == 2
        else source
        for source in sources
    ]
    function = getattr(tf.raw_ops, operation.type)
    parameters = inspect.signature(function).parameters
    definition, arguments, inferred = operation.op_def, {}, set()
    for argument in definition.input_arg:
        inferred |= {argument.type_attr, argument.number_attr}
        if argument.number_attr:
            count = operation.get_attr(argument.number_attr)
            arguments[argument.name], sources = sources[:count], sources[count:]
        else:
            arguments[argument.name], *sources = sources
    attributes = {
        attribute.name: operation.get_attr(attribute.name)
        for attribute in definition.attr
        if attribute.name not in inferred
    }
    # The functions call "axis" what operations call "dim", "split_dim" and the like.
    outputs = function(
        **{
            name if name in parameters else "axis": value
            for name, value in {**arguments, **attributes}.items()
        }
    )
    return outputs if isinstance(outputs, list) else [outputs]


def is_at_hand(tensor):
    """Return whether code that runs now, or is being traced, can read ``tensor``.

    The tensors of a graph can be read while it, or a branch inside it, is being traced.
    A tensor with a value is no part of a graph, which would take it for a constant.
    """
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    if not tf.is_symbolic_tensor(tensor):
        return tf.executing_eagerly()
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


def is_traced():
    """Return whether TensorFlow traces a graph now, which tells what reads a tensor."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def in_graph(function):
    """Return ``function`` that is traced as a graph of TensorFlow and run as such."""
    if keras.backend.backend() != "tensorflow":
        return lambda *args: None
    import tensorflow as tf

    return tf.function(function, autograph=False)


def _operation(tensor):
    """Return what computes ``tensor`` in the graph that is being traced, or None."""
    import tensorflow as tf

    traced = isinstance(tensor, tf.Tensor) and not tf.executing_eagerly()
    return getattr(tensor, "op", None) if traced else None


def cast_here(gradient):
    """Return a dense ``gradient``, cast once more if it comes from a narrower dtype.

    XLA writes each input of a branch to memory first. The narrow tensor is in memory
    already, and takes half the space; its cast becomes part of the operation that reads
    it inside the branch.
    """
    import tensorflow as tf

    source = before_cast(gradient)
    return gradient if source is gradient else tf.cast(source, gradient.dtype)
