"""Many small tensors as few stacks, so that one operation serves all of a stack."""

import collections
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from keras_mp import dtypes, kinds, private

#: Indices in a list of tensors, and their stack; or one index, and its tensor.
Pile = tuple[Sequence[int], Any]

#: So many numbers are worth an operation that is slow to start but moves less memory.
LARGE = 2**20

#: So many small tensors of one shape, at least, are worth a stack.
STACKED = 4

#: The most numbers in a stack. TensorFlow stacks more of them in several threads, which
#: take longer to start than the work; and with small stacks the first are done while
#: the last gradients are still computed.
_STACK = 2**13 - 1


def small_ones_stacked(parts: Sequence[Any]) -> list[Pile]:
    """Return ``parts``, the small ones of one shape and dtype stacked a few at a time.

    One operation on a stack takes the place of one for each of many small tensors. A
    tensor that was cast from a narrower dtype is replaced by what it was before the
    cast, which then need not run, if it is stacked or `is_slow_to_cast`. Two calls with
    the same tensors in the same order return the same stacks, and TensorFlow makes them
    only once.

    Args:
        parts: List of tensors; a sparse gradient among them stays alone.

    Returns:
        A list of pairs: indices in ``parts``, and a tensor; with a first axis for them,
        if they are several.
    """
    groups = collections.defaultdict(list)
    for index, part in enumerate(parts):
        small = not kinds.is_sparse(part) and has_at_most(part, _STACK // STACKED)
        groups[_kind(part) if small else index].append(index)
    return [pair for group in groups.values() for pair in _piled(parts, group)]


def map_stacked(
    function: Callable[[list[Any]], list[Any]], parts: Sequence[Any]
) -> list[Any]:
    """Return ``function(parts)``, computed on stacks of the small ones.

    Args:
        function: It takes a list of tensors and sparse gradients, returns one like it,
            and does the same to every number.
        parts: List of tensors and sparse gradients.
    """
    piles = small_ones_stacked(parts)
    results = function([_as_given(parts, *pile) for pile in piles])
    mapped = {}
    for (indices, _), result in zip(piles, results, strict=True):
        each = [result] if len(indices) == 1 else ops.unstack(result)
        mapped.update(zip(indices, each, strict=True))
    return [mapped[index] for index in range(len(parts))]


def without_slow_cast(part: Any) -> Any:
    """Return what ``part`` was cast from if that is quicker to read, else ``part``.

    It is if it holds so many numbers in bfloat16 that reading them takes longer than
    starting what can: a product, or what XLA has compiled. For float16 CPUs have no
    quick operations.
    """
    source = private.tracing.before_cast(part)
    return source if is_slow_to_cast(source) else part


def is_slow_to_cast(part: Any) -> bool:
    """Return whether ``part`` is so large that a cast of it costs more than a start."""
    return dtypes.dtype_of(part) == "bfloat16" and not has_at_most(part, LARGE - 1)


def has_at_most(part: Any, limit: int) -> bool:
    """Return whether ``part`` is known to hold at most ``limit`` numbers."""
    return None not in part.shape and math.prod(part.shape) <= limit


def _kind(part):
    """Return what tensors of one stack have in common."""
    source = private.tracing.before_cast(part)
    stack = private.tracing.before_unstack(source)
    kind = None if stack is None else stack.ref()
    return tuple(part.shape), part.dtype, source.dtype, kind


def _piled(parts, indices):
    if len(indices) < STACKED:
        return [((index,), without_slow_cast(parts[index])) for index in indices]
    height = _STACK // max(1, math.prod(parts[indices[0]].shape))
    count = math.ceil(len(indices) / height)
    cuts = [index * len(indices) // count for index in range(count + 1)]
    piles = [indices[start:end] for start, end in itertools.pairwise(cuts)]
    return [(pile, _stack([parts[index] for index in pile])) for pile in piles]


def _stack(parts):
    sources = list(map(private.tracing.before_cast, parts))
    stack = private.tracing.before_unstack(*sources)
    return ops.stack(sources) if stack is None else stack


def _as_given(parts, indices, stack):
    """Return the ``stack`` of the parts at ``indices`` in the dtype that they have."""
    first = parts[indices[0]]
    return first if len(indices) == 1 else ops.cast(stack, first.dtype)
