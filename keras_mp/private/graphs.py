"""The graph of a Functional or Sequential model: its tensors and operations."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_mp.dtypes import LOW_PRECISION
from keras_mp.private import layers

#: The attribute in which a ``Sequential`` model stores the input that it makes.
SEQUENTIAL_LAYERS = "_layers"


def graph_of(model: keras.layers.Layer) -> keras.Model:
    """Return the Functional model that ``model`` is, or has if it is Sequential."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model


def named_outputs(model: keras.layers.Layer) -> list[tuple[Any, keras.KerasTensor]]:
    """Return pairs of the name and the symbolic tensor of each output of a graph.

    The names are those by which losses are given: the keys where outputs are a dict.
    """
    graph = graph_of(model)
    struct = getattr(graph, "_outputs_struct", None)
    if isinstance(struct, dict):
        names = {id(tensor): key for key, tensor in struct.items()}
        return [(names.get(id(tensor)), tensor) for tensor in graph.outputs]
    return list(zip(graph.output_names, graph.outputs, strict=True))


def source_of(tensor: Any) -> tuple[keras.Operation, int]:
    """Return what computes a symbolic ``tensor``, and which of its outputs it is."""
    history = tensor._keras_history
    return history.operation, history.tensor_index


def inputs_of(tensor: Any) -> list[keras.KerasTensor]:
    """Return the symbolic tensors that a symbolic ``tensor`` is computed from."""
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return list(node.arguments.keras_tensors)


def graph_operations(model: keras.layers.Layer) -> list[keras.Operation]:
    """Return the operations of a Functional model that are no layers, inputs first."""
    operations = getattr(model, "operations", ())
    return [each for each in operations if not isinstance(each, keras.layers.Layer)]


def readers_of_operation(operation: keras.Operation) -> list[keras.Operation]:
    """Return the operations and layers that read what ``operation`` returns."""
    return [node.operation for node in operation._outbound_nodes]


def sources_of_operation(operation: keras.Operation) -> list[keras.Operation]:
    """Return the layers that compute what ``operation`` reads, in the same graph."""
    found = []
    for node in operation._inbound_nodes:
        for source in (parent.operation for parent in node.parent_nodes):
            is_layer = isinstance(source, keras.layers.Layer)
            found += [source] if is_layer else sources_of_operation(source)
    return found


def has_graph(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` runs a graph of layers: Functional or Sequential."""
    graphs = keras.Sequential, keras.Function
    return isinstance(layer, graphs) and layers.is_code_of_keras(type(layer).call)


def widen_made_input(layers: Sequence[keras.layers.Layer]) -> None:
    """Have a ``Sequential`` model of ``layers`` take its input in float32.

    One that makes its own input makes it in the compute dtype of its first layer, and
    goes on rounding to it.
    """
    for first in layers[:1]:
        if isinstance(first, keras.layers.InputLayer) and first.dtype in LOW_PRECISION:
            first._dtype = first.output._dtype = "float32"


def named_inputs(model: keras.Model, x: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of an input, and its numbers, for each dense tensor in ``x``."""
    if isinstance(x, dict):
        paths = keras.tree.flatten_with_path(x)
        pairs = [("/".join(map(str, path)), leaf) for path, leaf in paths]
    else:
        built = model.built and getattr(model, "inputs", None)
        names = [tensor.name for tensor in built or ()]
        leaves = keras.tree.flatten(x)
        if len(names) != len(leaves):
            names = map(str, range(len(leaves)))
        pairs = zip(names, leaves, strict=True)
    yield from ((name, leaf) for name, leaf in pairs if _is_dense_number(leaf))


def _is_dense_number(leaf):
    # Sparse and ragged tensors have no `__array__`.
    if not hasattr(leaf, "__array__"):
        return False
    dtype = keras.backend.standardize_dtype(leaf.dtype)
    return "int" in dtype or "float" in dtype
