"""Reading TensorFlow's graphs: what runs, in which order, on how many bytes."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

#: Orders of `scheduled`.
WRITTEN, DEPTH_FIRST, BREADTH_FIRST = "as written", "depth first", "breadth first"


def needed(graph: tf.Graph) -> list[tf.Operation]:
    """Return the operations that the outputs and side effects of ``graph`` need."""
    names: set[str] = set()
    queue = [source(tensor).op for tensor in graph.outputs]
    queue += graph.control_outputs
    while queue:
        op = queue.pop()
        if op.name not in names:
            names.add(op.name)
            queue += [source(tensor).op for tensor in op.inputs]
            queue += op.control_inputs
    return [op for op in graph.get_operations() if op.name in names]


def scheduled(operations: Sequence[tf.Operation], order: str) -> Iterator[tf.Operation]:
    """Yield the operations, each after those that it depends on.

    Of several that are ready, the next one is: the first in the graph (``WRITTEN``),
    the last that became ready (``DEPTH_FIRST``), or the first that became ready
    (``BREADTH_FIRST``).
    """
    waits, consumers = _dependencies(operations)
    number = itertools.count()

    def ranked(index: int) -> tuple[int, int]:
        since = next(number)
        return {WRITTEN: index, DEPTH_FIRST: -since, BREADTH_FIRST: since}[order], index

    ready = [ranked(index) for index, count in enumerate(waits) if not count]
    heapq.heapify(ready)
    while ready:
        _, done = heapq.heappop(ready)
        yield operations[done]
        for index in consumers[operations[done].name]:
            waits[index] -= 1
            if not waits[index]:
                heapq.heappush(ready, ranked(index))


def _dependencies(
    operations: Sequence[tf.Operation],
) -> tuple[list[int], dict[str, list[int]]]:
    """Return how many results each operation waits for, and who waits for its own."""
    waits: list[int] = []
    consumers: dict[str, list[int]] = collections.defaultdict(list)
    for index, op in enumerate(operations):
        before = [source(tensor).op.name for tensor in op.inputs]
        before += [other.name for other in op.control_inputs]
        waits.append(len(before))
        for name in before:
            consumers[name].append(index)
    return waits, consumers


def source(tensor: tf.Tensor) -> tf.Tensor:
    """Return ``tensor``; of an output of IdentityN, the input that it repeats.

    TensorFlow removes IdentityN, which would wait for all its inputs.
    """
    while tensor.op.type == "IdentityN":
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def size_of(tensor: tf.Tensor) -> int | None:
    """Return a tensor's size in bytes; None if its shape is not known."""
    import tensorflow as tf

    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    elements = tensor.shape.num_elements()
    return None if elements is None else elements * tensor.dtype.size


def constant(tensor: tf.Tensor) -> Any:
    """Return the value of ``tensor``; None if only running the step tells it."""
    import tensorflow as tf

    return tf.get_static_value(tensor)


def is_lowered(op: tf.Operation) -> bool:
    """Return whether TensorFlow replaces ``op`` by the operations of its branches."""
    return op.node_def.attr["_lower_using_switch_merge"].b


def trips(op: tf.Operation, lengths: Sequence[int | None]) -> int:
    """Return how often a loop runs: its limit, or else the length of its lists.

    Args:
        op: The loop.
        lengths: The length of each argument that is a list; None for the others.
    """
    most = op.inputs[1]  # after its counter, in the loops that TensorFlow makes
    limit = constant(most) if most.shape.rank == 0 else None
    if limit is not None and limit > 0:
        return int(limit)
    return max(int(length or 1) for length in lengths)
