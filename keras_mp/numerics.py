"""Arithmetic on lists of gradients in which None and sparse entries are first class.

A gradient is a dense tensor, None (the variable did not take part), or a sparse
gradient: rows of a large variable, such as TensorFlow's ``IndexedSlices``, known here
by its ``values`` and ``indices``. Sparse gradients stay sparse.
"""

import collections
import functools
import itertools
import math

import keras
from keras import ops

from keras_mp import private


def is_sparse(gradient):
    """Return whether ``gradient`` holds only some rows of its variable."""
    return hasattr(gradient, "values") and hasattr(gradient, "indices")


def dense_parts(gradients):
    """Return the tensors that hold the numbers of ``gradients``; None is left out."""
    return [
        gradient.values if is_sparse(gradient) else gradient
        for gradient in gradients
        if gradient is not None
    ]


def overwrites(variable):
    """Return whether a "gradient" of ``variable`` is its next value.

    So it is with the scaling factors of float8 layers.
    """
    return getattr(variable, "overwrite_with_gradient", False)


def all_finite(gradients):
    """Return a scalar bool tensor: no gradient holds an inf or a NaN.

    Reads every number once: a sum is finite only if all of its terms are. Numbers so
    large that their sum overflows float32, beyond 1e30 even in the largest models,
    count as not finite too; their squares and norms would overflow in any optimizer.

    Args:
        gradients: List of float tensors of any shape, sparse gradients and None.

    Does not synchronise with the device.
    """
    parts = dense_parts(gradients)
    if private.in_xla():
        sums = [_sum_by_product(part) for part in _added_up(parts)]
    else:
        sums = [_sum(stack) for _, stack in stacks(parts)]
    return ops.isfinite(ops.sum(ops.stack([ops.convert_to_tensor(0.0), *sums])))


def every_finite(gradients):
    """Return what `all_finite` does, exactly: each number is looked at by itself.

    It takes several times as long, and temporaries of a quarter of the gradients' size.
    """
    finite = [ops.all(ops.isfinite(part)) for part in dense_parts(gradients)]
    return ops.all(ops.stack(finite)) if finite else ops.convert_to_tensor(True)


def stacks(parts):
    """Return ``parts``, the small ones of one shape and dtype stacked a few at a time.

    One operation on a stack takes the place of one for each of many small tensors. A
    tensor that was cast from a narrower dtype is replaced by what it was before the
    cast, which then need not run, if it is stacked or `narrow`. Whoever asks for the
    same tensors in the same order gets the same stacks, and TensorFlow makes them only
    once.

    Args:
        parts: List of tensors; a sparse gradient among them stays alone.

    Returns:
        A list of pairs: places in ``parts``, and a tensor; with a first axis for them,
        if they are several.
    """
    groups = collections.defaultdict(list)
    for place, part in enumerate(parts):
        small = not is_sparse(part) and _is_small(part, _STACK // STACKED)
        groups[_kind(part) if small else place].append(place)
    return [pair for group in groups.values() for pair in _piled(parts, group)]


def _kind(part):
    """Return what tensors of one stack have in common."""
    source = private.before_cast(part)
    stack = private.before_unstack(source)
    kind = None if stack is None else stack.ref()
    return tuple(part.shape), part.dtype, source.dtype, kind


def _piled(parts, places):
    if len(places) < STACKED:
        return [((place,), narrow(parts[place])) for place in places]
    height = _STACK // max(1, math.prod(parts[places[0]].shape))
    count = math.ceil(len(places) / height)
    cuts = [place * len(places) // count for place in range(count + 1)]
    piles = [places[start:end] for start, end in itertools.pairwise(cuts)]
    return [(pile, _stack([parts[place] for place in pile])) for pile in piles]


def _stack(parts):
    sources = list(map(private.before_cast, parts))
    stack = private.before_unstack(*sources)
    return ops.stack(sources) if stack is None else stack


def map_stacks(function, gradients):
    """Return ``function(gradients)``, computed on `stacks` of the small ones.

    Args:
        function: It takes a list of tensors and sparse gradients, returns one like it,
            and does the same to every number.
        gradients: List of tensors and sparse gradients.
    """
    piles = stacks(gradients)
    results = function([_as_gradients(gradients, *pile) for pile in piles])
    mapped = {}
    for (places, _), result in zip(piles, results, strict=True):
        each = [result] if len(places) == 1 else ops.unstack(result)
        mapped.update(zip(places, each, strict=True))
    return [mapped[place] for place in range(len(gradients))]


def _as_gradients(gradients, places, stack):
    """Return the ``stack`` of those at ``places`` in the dtype that they have."""
    first = gradients[places[0]]
    return first if len(places) == 1 else ops.cast(stack, first.dtype)


#: So many numbers are worth an operation that is slow to start but moves less memory.
LARGE = 2**20

#: So many small tensors of one shape, at least, are worth a stack.
STACKED = 4

#: The most numbers in a stack. TensorFlow stacks more of them in several threads, which
#: take longer to start than the work; and with small stacks the first are done while
#: the last gradients are still computed.
_STACK = 2**13 - 1


def narrow(part):
    """Return what ``part`` was cast from if that is quicker to read, else ``part``.

    It is if it holds so many numbers in bfloat16 that reading them takes longer than
    starting what can: a product, or what XLA has compiled. For float16 CPUs have no
    quick operations.
    """
    source = private.before_cast(part)
    return source if _is_narrow(source) else part


def _is_narrow(part):
    return dtype_of(part) == "bfloat16" and not _is_small(part, LARGE - 1)


def _is_small(part, limit):
    return None not in part.shape and math.prod(part.shape) <= limit


def _added_up(parts):
    """Return ``parts``, the small ones of one shape added up in float32.

    By twos, so that XLA makes few loops of it. It would make one for each part of a
    stack. Outside XLA, TensorFlow makes one operation of many additions, and under a
    strategy may give it a temporary variable that two replicas create under one name.
    """
    groups = collections.defaultdict(list)
    for place, part in enumerate(parts):
        small = _is_small(part, 2**16)
        if small:
            part = _at_least_float32(part)
        groups[(tuple(part.shape), part.dtype) if small else place].append(part)
    return list(map(_total, groups.values()))


def _total(parts):
    while len(parts) > 1:
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        parts = [a if b is None else ops.add(a, b) for a, b in pairs]
    return parts[0]


def _sum(part):
    """Return a finite scalar float32 tensor if ``part`` and its sum in float32 are."""
    if _is_narrow(part):
        return _sum_by_product(part)  # reads half of what its float32 would be
    return ops.cast(ops.sum(_at_least_float32(part)), "float32")


def _sum_by_product(part):
    """Return 0 as a scalar float32 tensor; NaN if a number in ``part`` is not finite.

    On a CPU, XLA takes a product with a column of zeros several times as fast as a sum.
    """
    columns = part.shape[-1] if len(part.shape) else 1
    if not columns:
        return ops.convert_to_tensor(0.0)
    rows = ops.reshape(part, (-1, columns))
    zeros = ops.zeros((columns, 1), part.dtype)
    return ops.cast(ops.sum(ops.matmul(rows, zeros)), "float32")


def _at_least_float32(tensor):
    """Return ``tensor`` in a dtype in which its sum does not overflow."""
    low = dtype_of(tensor) in private.LOW_PRECISION
    return ops.cast(tensor, "float32") if low else tensor


def dtype_of(tensor):
    """Return the dtype of ``tensor`` by its standard name."""
    return keras.backend.standardize_dtype(tensor.dtype)


def largest(gradients):
    """Return the largest absolute value in ``gradients`` as a float32 scalar tensor.

    0 where there is no gradient; inf or NaN, where one holds either.
    """
    sizes = [_largest(part) for part in dense_parts(gradients)]
    return functools.reduce(ops.maximum, sizes, ops.convert_to_tensor(0.0))


def _largest(part):
    highest, lowest = ops.max(part, initial=0.0), ops.min(part, initial=0.0)
    return ops.cast(ops.maximum(highest, ops.negative(lowest)), "float32")


def map_values(function, gradient):
    """Return ``gradient`` with ``function`` applied to the tensor of its numbers."""
    if not is_sparse(gradient):
        return function(gradient)
    values = function(gradient.values)
    return type(gradient)(values, gradient.indices, gradient.dense_shape)


def inverse(scale):
    """Return 1 over ``scale``, a scalar tensor or variable, as a float32 tensor.

    A product is several times as fast as a division, and as exact for a scale that is
    a power of two.
    """
    return ops.divide(1.0, ops.cast(scale, "float32"))


def unscale(gradient, scale):
    """Return ``gradient`` divided by ``scale``, in the gradient's dtype.

    Args:
        gradient: Float tensor, sparse gradient or None.
        scale: Scalar float32 tensor or variable; None for 1.
    """
    return gradient if scale is None else rescale(gradient, inverse(scale))


def rescale(gradient, scale):
    """Return ``gradient`` times ``scale``, in the gradient's dtype; None stays None."""
    if gradient is None:
        return None
    # Not in float16, where a scale of 2**16 is inf.
    return map_values(lambda v: ops.cast(ops.multiply(v, scale), v.dtype), gradient)


def is_float(tensor):
    """Return whether ``tensor`` is a tensor, symbolic or not, of a float dtype."""
    is_tensor = ops.is_tensor(tensor) or isinstance(tensor, keras.KerasTensor)
    return is_tensor and keras.backend.is_float_dtype(tensor.dtype)


def cast_floats(structure, dtype):
    """Return ``structure`` with every float tensor cast to ``dtype``, masks kept.

    Integer and bool tensors, None and anything that is no tensor stay as they are.
    """
    return keras.tree.map_structure(
        lambda leaf: private.cast_with_mask(leaf, dtype) if is_float(leaf) else leaf,
        structure,
    )


def widen(structure):
    """Return ``structure`` with float16 and bfloat16 tensors cast to float32."""

    def widened(leaf):
        low = is_float(leaf) and dtype_of(leaf) in private.LOW_PRECISION
        return private.cast_with_mask(leaf, "float32") if low else leaf

    return keras.tree.map_structure(widened, structure)


def checked_float_dtype(owner, dtype):
    """Return ``dtype``, the argument ``output_dtype`` of ``owner``, by its full name.

    Raises:
        ValueError: It is neither None nor a float dtype.
    """
    if dtype is None:
        return None
    try:
        standard = keras.backend.standardize_dtype(dtype)
    except ValueError:
        standard = None
    if standard is None or not keras.backend.is_float_dtype(standard):
        raise ValueError(
            f"{owner}(output_dtype={dtype!r}): `output_dtype` must be None, to hand "
            "back the dtype around the layer, or a float dtype such as 'float32'."
        )
    return standard
