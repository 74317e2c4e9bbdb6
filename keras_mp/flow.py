"""Which dtype flows on from a layer, by who reads it; and what was rounded for whom.

Under a policy of keras_mp's some layers compute in float32. What they hand on may stay
in float32 only where the reader is known to take it: a Functional or Sequential graph
of Keras's, whose layers cast what they get, or a loss, a metric and `predict`. Code of
the user's own gets the dtype that Keras alone would give, for it multiplies and
concatenates what it gets with tensors of that dtype.

A tensor that is rounded on its way to such code remembers what it was rounded from.
Who reads raw data, and who returns predictions, takes that instead.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import casts, dtypes, private

#: The readers: the graph of a Functional or Sequential model; a layer's ``call``, or
#: another function, of the user's own; such a ``call`` that computes in float32; a step
#: of ``fit``, ``evaluate`` or ``predict``.
GRAPH, CODE, ISLAND, STEP = "graph", "code", "island", "step"

_EXACT = "_keras_mp_exact"
_PRODUCT = "_keras_mp_exact_product"
_IN_KERAS = "_keras_mp_dtype_in_keras"


class _Present(threading.local):
    reader: str | None = None


_present = _Present()


def reader() -> str | None:
    """Return who reads what the layer that is called now hands on; None if unknown."""
    return _present.reader


@contextlib.contextmanager
def read_by(reader: str | None):
    """Have ``reader`` read what layers hand on inside the block, in this thread."""
    before = _present.reader
    _present.reader = reader
    try:
        yield
    finally:
        _present.reader = before


def remember(tensor: Any, exact: Any) -> Any:
    """Return ``tensor``, which remembers the float32 tensor that it stands for.

    Args:
        tensor: A tensor of a 16-bit dtype.
        exact: The same numbers, not rounded: a tensor, or a function without arguments
            that computes it.
    """
    with contextlib.suppress(AttributeError):  # JAX's arrays take no attributes
        setattr(tensor, _EXACT, exact)
    return tensor


def remember_product(tensor: Any, exact: Callable) -> Any:
    """Return ``tensor``, which remembers how to compute all of it in float32.

    Unlike what `remember` does, that is not used but for a head (`widened`).
    """
    with contextlib.suppress(AttributeError):
        setattr(tensor, _PRODUCT, exact)
    return tensor


def unrounded(structure: Any) -> Any:
    """Return ``structure`` with what its tensors were rounded from, where it is known.

    Tensors of which nothing is known stay as they are.
    """
    return keras.tree.map_structure(_unrounded, structure)


def _unrounded(leaf, known=None):
    exact = private.tracing.before_rounding(leaf, known or _known)
    return leaf if exact is None else private.tensors.with_mask_of(leaf, exact)


def _known(leaf):
    exact = getattr(leaf, _EXACT, None)
    return exact() if isinstance(exact, Callable) else exact


def _known_product(leaf):
    exact = getattr(leaf, _PRODUCT, None)
    return _known(leaf) if exact is None else exact()


def widened(structure: Any, *, products: bool = False) -> Any:
    """Return ``structure`` with 16-bit floats in float32, unrounded where possible.

    Args:
        structure: Of tensors, nested in any way.
        products: Whether a product that is returned is computed in float32 as well.
    """
    known = _known_product if products else _known

    def widen(leaf):
        if not dtypes.is_low(leaf):
            return leaf
        return private.tensors.with_logits_of(
            leaf, casts.widen(_unrounded(leaf, known))
        )

    return keras.tree.map_structure(widen, structure)


def rounded(structure: Any, dtype: str) -> Any:
    """Return ``structure`` with floats in ``dtype``; they remember what they were."""

    def narrow(leaf):
        if not dtypes.is_float(leaf) or dtypes.dtype_of(leaf) == dtype:
            return leaf
        return remember(private.tensors.cast_with_mask(leaf, dtype), leaf)

    return keras.tree.map_structure(narrow, structure)


def hand_on(outputs: Any, dtype: str, *, wanted: bool = False) -> Any:
    """Return ``outputs`` of a layer in the dtype in which their reader takes them.

    Args:
        outputs: What a layer computed in float32, in any structure.
        dtype: The 16-bit dtype in which Keras alone would hand it on.
        wanted: Whether float32 is what the user asked for, or what raw data came in.
            Then only code known to need 16 bits gets them, and not an unknown reader.
    """
    if reader() == ISLAND:
        return widened(outputs)
    if reader() == GRAPH or (wanted and reader() != CODE):
        return keras.tree.map_structure(functools.partial(_mark, dtype), outputs)
    return rounded(outputs, dtype)


def hand_out(outputs: Any, *, of_model: bool, exact_heads: bool = False) -> Any:
    """Return what a container of layers hands to its reader.

    Args:
        outputs: What its graph or its code returned, in any structure.
        of_model: Whether it is a model, from whose outputs a step computes losses.
        exact_heads: Whether a step, or the graph that ends with it, gets products in
            float32.
    """
    if reader() == STEP and of_model:
        return widened(outputs, products=exact_heads)
    if reader() == ISLAND:
        return widened(outputs)
    if reader() == GRAPH and exact_heads:
        return keras.tree.map_structure(_wide_in_graph, outputs)
    # A script gets of a model what it gets of the saved one.
    return as_in_keras(outputs) if reader() == CODE else outputs


def _wide_in_graph(leaf):
    if not dtypes.is_low(leaf):
        return leaf
    return _mark(dtypes.dtype_of(leaf), widened(leaf, products=True))


def _mark(dtype, leaf):
    """Have a tensor that stays in float32 remember the dtype that Keras would give."""
    if dtypes.is_float(leaf) and not dtypes.is_low(leaf):
        with contextlib.suppress(AttributeError):
            setattr(leaf, _IN_KERAS, dtype)
    return leaf


def dtype_in_keras(tensor: Any) -> str:
    """Return the dtype that Keras alone would have given a float ``tensor``."""
    return getattr(tensor, _IN_KERAS, None) or dtypes.dtype_of(tensor)


def as_in_keras(structure: Any) -> Any:
    """Return ``structure`` with each tensor in the dtype that Keras would give."""

    def narrow(leaf):
        dtype = getattr(leaf, _IN_KERAS, None)
        return leaf if dtype is None else rounded(leaf, dtype)

    return keras.tree.map_structure(narrow, structure)
