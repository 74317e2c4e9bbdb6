"""Where numbers went wrong: what is a cause, and what only follows from one.

A layer is a cause if what it read is right and what it returned is not, and no layer
inside it explains that; backward likewise, from its outputs' gradients to those of its
inputs and weights. Between layers, a cast or code of the layer around is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from keras_mp.recording import LayerCall, Record, Tensor

#: A number that lost this much of itself, in the norm of a tensor, is wrong; and one
#: within the second limit is right. A layer between both is neither cause nor victim.
WRONG, RIGHT = 0.5, 0.05


class Cause(NamedTuple):
    """Where something went wrong.

    Attributes:
        call: The index of the call in the record.
        tensor: ``"input"``, ``"output"`` or ``"gradient"``, or a variable's name.
        between: Whether it happened before the layer was reached: in a cast, in a sum
            or in code of the layer around.
    """

    call: int
    tensor: str
    between: bool = False


Tensors = Iterable[Tensor | None]


class _Calls:
    """The calls of a record as a tree."""

    def __init__(self, record: Record) -> None:
        self.calls = record.calls
        self.inside: dict[int | None, list[int]] = {}
        for index, call in enumerate(record.calls):
            self.inside.setdefault(call.outer, []).append(index)
        self.weights: dict[str, list[Any]] = {}
        for weight in record.weights:
            self.weights.setdefault(weight.layer, []).append(weight)

    def beside(self, index: int) -> list[int]:
        """Return the calls in the same layer, itself included, in order."""
        return self.inside[self.calls[index].outer]

    def around(self, index: int) -> LayerCall | None:
        outer = self.calls[index].outer
        return None if outer is None else self.calls[outer]

    def weights_of(self, index: int) -> list[Any]:
        return self.weights.get(self.calls[index].path, [])


def forward(
    record: Record,
    is_bad: Callable[[Tensor], bool],
    may_follow: Callable[[Tensor], bool],
) -> Iterator[Cause]:
    """Yield the causes of what went wrong in the forward pass, in order.

    Args:
        record: The `Record`.
        is_bad: Whether a tensor is wrong.
        may_follow: Whether an input is wrong enough to explain a wrong output.
    """
    tree = _Calls(record)

    def some(test: Callable[[Tensor], bool], tensors: Tensors) -> bool:
        return any(tensor is not None and test(tensor) for tensor in tensors)

    for index, call in enumerate(record.calls):
        if not some(is_bad, call.outputs):
            continue
        if some(may_follow, call.inputs):
            around = tree.around(index)
            before = [each for each in tree.beside(index) if each < index]
            explained = around is not None and some(may_follow, around.inputs)
            explained |= any(some(may_follow, tree.calls[i].outputs) for i in before)
            if around is not None and not explained:
                yield Cause(index, "input", between=True)
            continue
        inner = tree.inside.get(index, [])
        if any(some(is_bad, tree.calls[each].outputs) for each in inner):
            continue
        if some(is_bad, [weight.value for weight in tree.weights_of(index)]):
            continue
        yield Cause(index, "output")


def backward(record: Record, is_bad: Callable[[Tensor], bool]) -> Iterator[Cause]:
    """Yield the causes of what went wrong in the backward pass, the first one first.

    Args:
        record: The `Record`.
        is_bad: Whether a gradient is wrong.
    """
    tree = _Calls(record)

    def some(tensors: Tensors) -> bool:
        return any(tensor is not None and is_bad(tensor) for tensor in tensors)

    def wrong_weights(index: int) -> list[Any]:
        return [each for each in tree.weights_of(index) if some([each.gradient])]

    arrives = [some(call.output_gradients) for call in record.calls]
    leaves = [some(call.input_gradients) for call in record.calls]
    arrived_wrong = {
        call.path for call, bad in zip(record.calls, arrives, strict=True) if bad
    }
    for index in reversed(range(len(record.calls))):
        call = record.calls[index]
        if arrives[index]:
            around = call.outer is not None and arrives[call.outer]
            later = [each for each in tree.beside(index) if each > index]
            if not around and not any(leaves[each] for each in later):
                yield Cause(_innermost(tree, index, arrives), "gradient", between=True)
            continue
        weights = wrong_weights(index) if call.path not in arrived_wrong else []
        inner = tree.inside.get(index, [])
        if any(arrives[each] or leaves[each] or wrong_weights(each) for each in inner):
            continue
        if leaves[index]:
            yield Cause(index, "gradient")
        elif weights:
            yield Cause(index, weights[0].name)
            arrived_wrong.add(call.path)  # once for all calls of the layer


def _innermost(tree: _Calls, index: int, arrives: list[bool]) -> int:
    """Return the last call inside that got the wrong gradient, at any depth."""
    inner = [each for each in tree.inside.get(index, []) if arrives[each]]
    return _innermost(tree, inner[-1], arrives) if inner else index


def not_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds an inf or a NaN."""
    return not tensor.finite


def is_wrong(tensor: Tensor) -> bool:
    """Return whether a tensor is far from what it would be in float32."""
    return tensor.error is not None and tensor.error.relative >= WRONG


def is_not_right(tensor: Tensor) -> bool:
    """Return whether a tensor is too far from float32 to be right."""
    return tensor.error is not None and not tensor.error.relative <= RIGHT


def has_vanished(tensor: Tensor) -> bool:
    """Return whether most numbers of a tensor became 0, and the tensor wrong by it."""
    return is_wrong(tensor) and tensor.error.vanished >= 0.5  # pyright: ignore
