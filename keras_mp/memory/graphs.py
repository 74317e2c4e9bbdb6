"""Reading TensorFlow's graphs: what runs, in which order, on how many bytes."""

import collections
import heapq
import itertools


def needed(graph):
    """Return the operations that the outputs and the effects of ``graph`` need."""
    names = set()
    queue = [source(tensor).op for tensor in graph.outputs]
    queue += graph.control_outputs
    while queue:
        op = queue.pop()
        if op.name not in names:
            names.add(op.name)
            queue += [source(tensor).op for tensor in op.inputs]
            queue += op.control_inputs
    return [op for op in graph.get_operations() if op.name in names]


#: Orders in which `scheduled` goes.
WRITTEN, DEPTH_FIRST, BREADTH_FIRST = "as written", "depth first", "breadth first"


def scheduled(operations, order):
    """Yield the operations, each after those that it waits for.

    Of those that are ready, the one that was written first, that became ready last, or
    that became ready first.
    """
    waits, consumers = _dependencies(operations)
    number = itertools.count()

    def ranked(place):
        since = next(number)
        return {WRITTEN: place, DEPTH_FIRST: -since, BREADTH_FIRST: since}[order], place

    ready = [ranked(place) for place, count in enumerate(waits) if not count]
    heapq.heapify(ready)
    while ready:
        _, done = heapq.heappop(ready)
        yield operations[done]
        for place in consumers[operations[done].name]:
            waits[place] -= 1
            if not waits[place]:
                heapq.heappush(ready, ranked(place))


def _dependencies(operations):
    """Return how much each operation waits for, and who waits for it, by its name."""
    waits, consumers = [], collections.defaultdict(list)
    for place, op in enumerate(operations):
        before = [source(tensor).op.name for tensor in op.inputs]
        before += [other.name for other in op.control_inputs]
        waits.append(len(before))
        for name in before:
            consumers[name].append(place)
    return waits, consumers


def source(tensor):
    """Return ``tensor``, or what it stands for.

    TensorFlow removes IdentityN, which would wait for all its inputs.
    """
    while tensor.op.type == "IdentityN":
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def size_of(tensor):
    """Return a tensor's bytes; None if its shape is not known."""
    import tensorflow as tf

    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    elements = tensor.shape.num_elements()
    return None if elements is None else elements * tensor.dtype.size


def constant(tensor):
    """Return the value of ``tensor``; None if it is known only when the step runs."""
    import tensorflow as tf

    return tf.get_static_value(tensor)


def functions(graph, op):
    """Return the graphs of the functions that ``op`` in ``graph`` calls or may call.

    In public a graph gives its functions as definitions without shapes. Their graphs
    are behind `_get_function`, by which TensorFlow differentiates them itself; it and
    the ``graph`` of what it returns are the same in TensorFlow 2.18 and 2.21.
    """
    return [
        graph._get_function(attribute.func.name).graph
        for attribute in op.node_def.attr.values()
        if attribute.HasField("func")
    ]


def is_lowered(op):
    """Return whether TensorFlow puts the branches of ``op`` in its place."""
    return op.node_def.attr["_lower_using_switch_merge"].b


def trips(op, lengths):
    """Return how often a loop runs: at most, or as often as its lists are long.

    Args:
        op: The loop.
        lengths: Of each of its arguments that is a list, the length; else None.
    """
    most = op.inputs[1]  # TensorFlow's own two come first, where it made the loop
    limit = constant(most) if most.shape.rank == 0 else None
    if limit is not None and limit > 0:
        return int(limit)
    return max(int(length or 1) for length in lengths)
