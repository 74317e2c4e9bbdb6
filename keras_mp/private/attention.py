"""What Keras keeps private of its attention layers.

Keras documents ``_compute_attention``, ``_calculate_scores`` and ``_apply_scores`` as
what to override for another computation of attention.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

# The classes, subclasses first, and what in them is replaced or relied on.
_PARTS = {
    keras.layers.AdditiveAttention: ("_apply_scores", "_calculate_scores"),
    keras.layers.Attention: ("_apply_scores", "_calculate_scores"),
    keras.layers.GroupQueryAttention: ("_compute_attention", "_masked_softmax"),
    keras.layers.MultiHeadAttention: ("_compute_attention", "_masked_softmax"),
}


class Scores(NamedTuple):
    """How the scores of several heads are computed.

    Attributes:
        queries, keys, scores: Letters for the axes of each, as in an einsum.
        key_axes: The axes of keys along which different keys lie.
        scale: By which scores are multiplied.
    """

    queries: str
    keys: str
    scores: str
    key_axes: tuple[int, ...]
    scale: float


def parts_of(layer: keras.layers.Layer) -> tuple[str, ...]:
    """Return the methods by which ``layer`` computes attention as Keras does.

    Empty for any other layer, and for subclasses that replace one of the methods.
    """
    for base, parts in _PARTS.items():
        if isinstance(layer, base):
            own = type(layer)
            same = all(getattr(own, part) is getattr(base, part) for part in parts)
            return parts if same else ()
    return ()


def uses_flash(layer: keras.layers.Layer) -> bool:
    """Return whether attention of several heads is computed in one kernel."""
    return bool(layer._flash_attention)


def returns_scores(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` has noted that it returns its scores; not all do."""
    return getattr(layer, "_return_attention_scores", False)


def with_causal_mask(
    layer: keras.layers.Layer, mask: Any, query: Any, value: Any
) -> Any:
    """Return ``mask``, which may be None, and no later value for any query."""
    causal = layer._compute_causal_mask(query, value)
    given = True if mask is None else ops.cast(mask, "bool")
    return ops.logical_and(given, causal)


def masked_softmax(layer: keras.layers.Layer, scores: Any, mask: Any) -> Any:
    """Return the softmax of scores of several heads."""
    return layer._masked_softmax(scores, mask)


def values_weighted(
    layer: keras.layers.Layer, weights: Any, value: Any, training: bool | None
) -> Any:
    """Return the values weighted for several heads, after dropout of weights."""
    if layer.dropout > 0:
        weights = layer._dropout_layer(weights, training=training)
    return ops.einsum(layer._combine_equation, weights, value)


def scores_of(layer: keras.layers.Layer) -> Scores:
    """Return how ``layer``, attention of several heads, computes its scores."""
    inputs, scores = layer._dot_product_equation.split("->")
    left, right = inputs.split(",")
    if isinstance(layer, keras.layers.MultiHeadAttention):  # whose keys come first
        scale = layer._inverse_sqrt_key_dim
        return Scores(right, left, scores, layer._attention_axes, scale)
    return Scores(left, right, scores, (1,), layer._inverse_sqrt_head_dim)
