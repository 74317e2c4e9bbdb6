"""The dtype of a layer's outputs, which depends on what reads them.

Under a policy of keras_mp's some layers compute in float32. Their outputs may stay in
float32 only if the reader accepts it: the graph of a Functional or Sequential model,
whose layers cast their inputs, or a loss, a metric or `predict`. Code of the user's own
gets the dtype that Keras alone would give, because it multiplies and concatenates these
outputs with tensors of that dtype.

A tensor that is rounded for such code remembers the float32 tensor that it was rounded
from. Layers that read raw data, and models that return predictions, take that instead.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_mp import casts, dtypes, private

#: The readers: the graph of a Functional or Sequential model; a ``call``, or another
#: function, of the user's own; such a ``call`` that computes in float32; a step of
#: ``fit``, ``evaluate`` or ``predict``.
GRAPH, CODE, ISLAND, STEP = "graph", "code", "island", "step"

_EXACT = "_keras_mp_exact"
_PRODUCT = "_keras_mp_exact_product"
_IN_KERAS = "_keras_mp_dtype_in_keras"


class _Present(threading.local):
    reader: str | None = None


_present = _Present()


def reader() -> str | None:
    """Return what reads the outputs of the layer called now; None if unknown."""
    return _present.reader


@contextlib.contextmanager
def read_by(reader: str | None) -> Iterator[None]:
    """Make ``reader`` the reader of all layers called in the block, in this thread."""
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

    Only the head of a model uses that (`widened`).
    """
    with contextlib.suppress(AttributeError):
        setattr(tensor, _PRODUCT, exact)
    return tensor


def unrounded(structure: Any) -> Any:
    """Return ``structure`` with the tensors that its tensors were rounded from.

    Where these are not known, tensors stay as they are.
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
        structure: Tensors, nested in any way.
        products: Whether tensors that `remember_product` was given are computed again
            in float32.
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
    """Return ``structure`` with floats in ``dtype``, which remember what they were."""

    def round_one(leaf):
        if not dtypes.is_float(leaf) or dtypes.dtype_of(leaf) == dtype:
            return leaf
        return remember(private.tensors.cast_with_mask(leaf, dtype), leaf)

    return keras.tree.map_structure(round_one, structure)


def hand_on(outputs: Any, dtype: str, *, wanted: bool = False) -> Any:
    """Return ``outputs`` of a layer in the dtype in which their reader takes them.

    Args:
        outputs: Tensors in any structure, which a layer computed in float32.
        dtype: The 16-bit dtype that they would have with Keras alone.
        wanted: Whether the user asked for float32, or raw data came in float32. Then
            an unknown reader gets float32 too, and only code of the user's own gets
            16 bits.
    """
    if reader() == ISLAND:
        return widened(outputs)
    if reader() == GRAPH or (wanted and reader() != CODE):
        return keras.tree.map_structure(functools.partial(_mark, dtype), outputs)
    return rounded(outputs, dtype)


def hand_out(outputs: Any, *, of_model: bool, exact_heads: bool = False) -> Any:
    """Return the outputs of a container of layers in the dtype for their reader.

    Args:
        outputs: Tensors in any structure, which its graph or its code returned.
        of_model: Whether it is a model, from whose outputs a step computes losses.
        exact_heads: Whether a step, or the graph that ends with the container, gets
            products in float32.
    """
    if reader() == STEP and of_model:
        return widened(outputs, products=exact_heads)
    if reader() == ISLAND:
        return widened(outputs)
    if reader() == GRAPH and exact_heads:
        return keras.tree.map_structure(_wide_in_graph, outputs)
    # A script gets the same from a model as from the saved one.
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

    def cast(leaf):
        dtype = getattr(leaf, _IN_KERAS, None)
        return leaf if dtype is None else rounded(leaf, dtype)

    return keras.tree.map_structure(cast, structure)
