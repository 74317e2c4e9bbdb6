"""Attention whose scores cannot overflow, and whose softmax is computed in float32.

The two large products, scores and weighted values, stay in low precision. A score may
exceed 65,504 though no query or key does. So in float16 each query is divided by a
power of two for which no score of it can, and its scores, once they are in float32, are
multiplied by it. Ordinary queries are divided by 1; nothing is rounded by that.

Keras documents ``_compute_attention``, ``_calculate_scores`` and ``_apply_scores`` as
what to override for another computation of attention. They are replaced on one layer.
"""

import functools
import inspect

import keras
from keras import ops

from keras_mp import private
from keras_mp.ops import float32

#: No score in float16 is to exceed it, whatever the signs of its terms.
_SAFE = 2.0**15

#: The score of a masked key: below every other, and all of them equal.
_MASKED = -(2.0**127)


def is_guarded_class(layer):
    """Return whether ``layer`` is of a class of Keras's that has a guard here."""
    return type(layer) in _GUARDS


def guard(layer):
    """Guard the scores and the softmax of a built attention layer of Keras's."""
    if not is_guarded_class(layer):
        return False
    if "_keras_mp_guarded" not in vars(layer):
        _GUARDS[type(layer)](layer)
        layer._keras_mp_guarded = True
    for softmax in private.sublayers(layer):
        if isinstance(softmax, keras.layers.Softmax):
            private.set_layer_policy(softmax, _FLOAT32)
    return True


def _guard_multi_head(layer):
    compute = layer._compute_attention

    @functools.wraps(compute)
    def guarded(query, *args, **kwargs):
        # Flash attention is one kernel, which keeps its scores in float32.
        if layer._flash_attention or not _is_low(query):
            return compute(query, *args, **kwargs)
        bound = inspect.signature(compute).bind(query, *args, **kwargs)
        return _attend(layer, **bound.arguments)

    layer._compute_attention = guarded


def _attend(
    layer,
    query,
    key,
    value,
    attention_mask=None,
    training=None,
    return_attention_scores=False,
    use_causal_mask=False,
):
    """Return outputs and weights of attention, as ``_compute_attention`` does.

    Newer Keras leaves a causal mask to it.
    """
    if use_causal_mask:
        causal = layer._compute_causal_mask(query, value)
        given = True if attention_mask is None else ops.cast(attention_mask, "bool")
        attention_mask = ops.logical_and(given, causal)
    scores = _scores(layer, query, key)
    return_attention_scores |= getattr(layer, "_return_attention_scores", False)
    if layer.dropout > 0 or return_attention_scores or len(query.shape) != 4:
        weights = layer._masked_softmax(scores, attention_mask)
    else:
        weights = _fused_softmax(scores, attention_mask)
    weights = ops.cast(weights, value.dtype)
    kept = weights
    if layer.dropout > 0:
        kept = layer._dropout_layer(weights, training=training)
    return ops.einsum(layer._combine_equation, kept, value), weights


def _is_low(tensor):
    return keras.backend.standardize_dtype(tensor.dtype) in private.LOW_PRECISION


def _fused_softmax(scores, mask):
    """Return what Keras's fused path weighs by where it takes it.

    It differs for a query whose keys are all masked: each weighs the same, and not 0.
    """
    if mask is None:
        return ops.softmax(scores)
    while len(mask.shape) < 4:
        mask = ops.expand_dims(mask, axis=-3)
    return ops.softmax(ops.where(ops.cast(mask, "bool"), scores, _MASKED))


def _scores(layer, query, key):
    """Return the scaled scores of several heads in float32."""
    keys_first = type(layer) is keras.layers.MultiHeadAttention
    axes = layer._attention_axes if keys_first else (1,)
    scale = layer._inverse_sqrt_key_dim if keys_first else layer._inverse_sqrt_head_dim

    def product(query, key):
        pair = (key, query) if keys_first else (query, key)
        return ops.einsum(layer._dot_product_equation, *pair)

    query, factor = _fitted(query, key, axes)
    scores = ops.cast(product(query, key), "float32")
    if factor is None:
        return scores * scale
    # One key of one feature, 1, gives each query's factor its place among the scores.
    one = ops.ones_like(ops.max(key, axis=(*axes, -1), keepdims=True), "float32")
    return scores * (product(factor, one) * scale)


def _fitted(query, key, axes):
    """Return ``query`` divided so that its products with ``key`` fit, and by what.

    Args:
        query: Tensor whose last axis the product sums over.
        key: Tensor of the same rank.
        axes: Those along which different keys lie.

    Returns:
        The query, in its dtype, and None, or a float32 tensor of its shape but for a
        last axis of size 1.
    """
    if keras.backend.standardize_dtype(query.dtype) != "float16":
        return query, None
    largest_query = ops.max(ops.abs(query), axis=-1, keepdims=True)
    largest_key = ops.max(ops.abs(key), axis=(*axes, -1), keepdims=True)
    bound = ops.cast(largest_query, "float32") * ops.cast(largest_key, "float32")
    exponent = ops.ceil(ops.log2(bound * (query.shape[-1] / _SAFE)))
    factor = ops.stop_gradient(ops.power(2.0, ops.maximum(exponent, 0.0)))
    return ops.cast(ops.cast(query, "float32") / factor, query.dtype), factor


def _guard_single_head(layer):
    calculate, apply = layer._calculate_scores, layer._apply_scores

    @functools.wraps(calculate)
    def calculate_scores(query, key):
        if not _is_low(query):
            return calculate(query, key)
        if layer.score_mode != "dot" or type(layer) is keras.layers.AdditiveAttention:
            return float32(calculate, output_dtype="float32")(query, key)
        query, factor = _fitted(query, key, (1,))
        scores = ops.matmul(query, ops.swapaxes(key, -2, -1))
        scores = ops.cast(scores, "float32")
        scores = scores if factor is None else scores * factor
        with private.variables_as_stored():
            return scores if layer.scale is None else ops.multiply(scores, layer.scale)

    @functools.wraps(apply)
    def apply_scores(scores, value, scores_mask=None, training=False):
        if not _is_low(value):
            return apply(scores, value, scores_mask, training)
        if scores_mask is not None:
            if len(scores_mask.shape) == 2:
                scores_mask = ops.expand_dims(scores_mask, axis=-2)
            scores = ops.where(scores_mask, scores, scores - 1e9)
        weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
        kept = weights
        if training and layer.dropout > 0:
            kept = keras.random.dropout(
                weights, layer.dropout, seed=layer.seed_generator
            )
        return ops.matmul(kept, value), weights

    layer._calculate_scores = calculate_scores
    layer._apply_scores = apply_scores


_FLOAT32 = keras.DTypePolicy("float32")

_GUARDS = {
    keras.layers.AdditiveAttention: _guard_single_head,
    keras.layers.Attention: _guard_single_head,
    keras.layers.GroupQueryAttention: _guard_multi_head,
    keras.layers.MultiHeadAttention: _guard_multi_head,
}
