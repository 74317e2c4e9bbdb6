"""What an operation of a TensorFlow graph needs."""


def needed_for(*operations):
    """Return all operations that ``operations`` need, and themselves, each once."""
    needed, queue = {}, list(operations)
    while queue:
        each = queue.pop()
        needed[each.name] = each
        queue += [tensor.op for tensor in each.inputs if tensor.op.name not in needed]
    return list(needed.values())
