"""Where numbers of a model's inputs are cast to 16 bits, and by which layer."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_mp import dtypes, precision_lists, private

# TensorFlow's operations by what they do to numbers: they keep all; keep some, of their
# first argument (`Split` of its second); compute others from all arguments; or read no
# number at all.
_KEEP = {
    "ConcatV2",
    "ExpandDims",
    "Identity",
    "Pack",
    "Reshape",
    "ReverseV2",
    "Squeeze",
    "StopGradient",
    "Transpose",
}
_SELECT = {
    "BroadcastTo",
    "GatherV2",
    "PadV2",
    "Slice",
    "Split",
    "SplitV",
    "StridedSlice",
    "Tile",
    "Unpack",
}
_COMPUTE = {
    "Abs",
    "Add",
    "AddV2",
    "ClipByValue",
    "Exp",
    "Log",
    "Log1p",
    "Maximum",
    "Minimum",
    "Mul",
    "Neg",
    "Pow",
    "RealDiv",
    "SelectV2",
    "Sqrt",
    "Square",
    "Sub",
}
_LOOK = {"Rank", "Shape", "ShapeN", "Size"}
_JOIN = {"ConcatV2", "Pack"}


class Rounding(NamedTuple):
    """A cast to 16 bits: the numbers before it, the layer that casts, its dtype."""

    numbers: Any
    layer: keras.layers.Layer
    dtype: str


def roundings(model: keras.Model, tensor: Any) -> Iterator[Rounding]:
    """Yield each cast to 16 bits of what ``model`` has computed from its input.

    The graph that is being traced tells: it is followed from the input through
    operations that move numbers and through arithmetic, but not through products with
    weights nor through layers that read raw data.

    Args:
        model: The model, which the graph has called already.
        tensor: The input, a tensor of that graph.
    """
    seen = set()
    for numbers, cast in _casts(model, tensor):
        if id(numbers) not in seen and (layer := _caster(model, cast)) is not None:
            seen.add(id(numbers))
            yield Rounding(numbers, layer, cast.outputs[0].dtype.name)


def _casts(model, tensor):
    """Yield numbers that come from ``tensor``, and the operation that casts them."""
    open_, seen = [(tensor, tensor)], set()
    while open_:
        tensor, numbers = open_.pop()
        for operation in _consumers(tensor):
            if (operation.name, id(tensor)) in seen:
                continue
            seen.add((operation.name, id(tensor)))
            if operation.type == "Cast":
                (out,) = operation.outputs
                if out.dtype.name in dtypes.LOW_PRECISION:
                    yield numbers, operation
                elif out.dtype.is_floating or out.dtype.is_integer:
                    open_.append((out, out))
            elif _goes_on(operation, tensor) and not _reads_data(model, operation):
                keeps = operation.type in _KEEP
                open_ += [(out, numbers if keeps else out) for out in operation.outputs]


def _consumers(tensor):
    """Return the operations that read ``tensor``, without those of gradients."""
    return [each for each in tensor.consumers() if "gradient_tape/" not in each.name]


def _goes_on(operation, tensor):
    """Return whether numbers of ``tensor`` are among those ``operation`` returns."""
    if operation.type in _JOIN | _COMPUTE:
        return True
    first = operation.inputs[operation.type == "Split"]
    return operation.type in _KEEP | _SELECT and first is tensor


def _reads_data(model, operation):
    return any(
        isinstance(each, precision_lists.DATA) for each in _layers_of(model, operation)
    )


def _caster(model, cast):
    """Return the layer for which ``cast`` is made, or None if nothing reads the result.

    Keras casts the inputs of a layer before it calls the layer, so in the scope of the
    caller. Inputs of code that also contains readers of raw data are cast by keras_mp,
    in the scope of that layer.
    """
    around = _layers_of(model, cast)
    reader = next(_readers(model, cast.outputs[0]), None)
    if reader is None:
        return None
    own = bool(around) and private.layers.has_own_call(around[-1])
    if own and dtypes.computes_low(around[-1]):
        return around[-1]
    inside = _layers_of(model, reader)[len(around) :]
    called = [each for each in inside if not private.graphs.has_graph(each)]
    return (called or around[-1:] or [model])[0]


def _readers(model, tensor):
    """Yield the operations that compute something from ``tensor``."""
    open_, seen = [tensor], set()
    while open_:
        tensor = open_.pop()
        for operation in _consumers(tensor):
            if operation.name in seen or operation.type in _LOOK:
                continue
            seen.add(operation.name)
            layers = _layers_of(model, operation)
            follows = layers and type(layers[-1]) in precision_lists.FOLLOW
            if follows or operation.type in _KEEP | _SELECT | {"Cast"}:
                open_ += operation.outputs
            else:
                yield operation


def _layers_of(model, operation):
    """Return the layers in which ``operation`` is, the outermost first.

    Keras opens a scope with the layer's name. TensorFlow adds a number to the second
    and later scopes of a name; the first scope is that of ``build``.
    """
    found = []
    for scope in operation.name.split("/")[:-1]:
        inside = (
            private.layers.walk(found[-1])[1:] if found else private.layers.walk(model)
        )
        names = {layer.name: layer for layer in reversed(inside)}
        layer = names.get(re.sub(r"_\d+$", "", scope)) or names.get(scope)
        if layer is not None:
            found.append(layer)
    return found
