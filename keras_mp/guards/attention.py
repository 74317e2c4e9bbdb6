"""Attention whose scores cannot overflow, and whose softmax is computed in float32.

The two large products, scores and weighted values, stay in low precision. A score may
exceed 65,504 though no query or key does. So in float16 each query is divided by a
power of two for which no score of it can, and its scores, once they are in float32, are
multiplied by it. Ordinary queries are divided by 1; nothing is rounded by that.

`keras_mp.private.attention` says which methods of a layer are replaced.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mp import dtypes, private
from keras_mp.ops import float32
from keras_mp.wrapping import is_wrapped, wrap_once

_FLOAT32 = keras.DTypePolicy("float32")

_MARK = "scores and softmax"

#: No score in float16 is to exceed it, whatever the signs of its terms.
_SAFE = 2.0**15

#: The score of a masked key: below every other, and all of them equal.
_MASKED = -(2.0**127)


def is_guarded_class(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` computes attention as a class of Keras's does.

    Subclasses that add arguments or a cache, as KerasHub's, are guarded as well; those
    that replace the computation are not.
    """
    return bool(private.attention.parts_of(layer))


def is_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether a layer of such a class is guarded."""
    return is_wrapped(layer, private.attention.parts_of(layer)[0], _MARK)


def guard(layer: keras.layers.Layer) -> None:
    """Guard the scores and the softmax of a built attention layer of Keras's."""
    wrappers = {
        "_apply_scores": _applied,
        "_calculate_scores": _calculated,
        "_compute_attention": _multi_head,
    }
    for part in private.attention.parts_of(layer):
        if part in wrappers:
            wrap_once(layer, part, _MARK, functools.partial(wrappers[part], layer))
    for softmax in private.layers.sublayers(layer):
        if isinstance(softmax, keras.layers.Softmax):
            private.layers.set_layer_policy(softmax, _FLOAT32)


def _multi_head(layer, compute):
    @functools.wraps(compute)
    def guarded(query, *args, **kwargs):
        # Flash attention is one kernel, which keeps its scores in float32.
        if private.attention.uses_flash(layer) or not dtypes.is_low(query):
            return compute(query, *args, **kwargs)
        bound = inspect.signature(compute).bind(query, *args, **kwargs)
        return _attend(layer, **bound.arguments)

    return guarded


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
        attention_mask = private.attention.with_causal_mask(
            layer, attention_mask, query, value
        )
    scores = _scores(layer, query, key)
    return_attention_scores |= private.attention.returns_scores(layer)
    if layer.dropout > 0 or return_attention_scores or len(query.shape) != 4:
        weights = private.attention.masked_softmax(layer, scores, attention_mask)
    else:
        weights = _fused_softmax(scores, attention_mask)
    weights = ops.cast(weights, value.dtype)
    outputs = private.attention.values_weighted(layer, weights, value, training)
    return outputs, weights


def _fused_softmax(scores, mask):
    """Return what Keras's fused path weighs by where it takes it.

    It differs for a query whose keys are all masked: each weighs the same, and not 0.
    """
    if mask is None:
        return ops.softmax(scores)
    while len(mask.shape) < 4:
        mask = ops.expand_dims(mask, axis=-3)
    return ops.softmax(ops.where(ops.cast(mask, "bool"), scores, _MASKED))


class _Products(NamedTuple):
    """The product of queries and keys, and the two of its gradient."""

    scores: Callable[[Any, Any], Any]  # of queries and keys
    queries: Callable[[Any, Any], Any]  # of scores and keys
    keys: Callable[[Any, Any], Any]  # of scores and queries


def _einsums(queries, keys, scores):
    """Return the products of tensors with these axes, as in `keras.ops.einsum`."""

    def product(left, right, result):
        return functools.partial(ops.einsum, f"{left},{right}->{result}")

    return _Products(
        product(queries, keys, scores),
        product(scores, keys, queries),
        product(scores, queries, keys),
    )


def _transposed(tensor):
    return ops.swapaxes(tensor, -2, -1)


# Einsums add up in float16 on a CPU, in older TensorFlow.
_MATMULS = _Products(
    lambda queries, keys: ops.matmul(queries, _transposed(keys)),
    ops.matmul,
    lambda scores, queries: ops.matmul(_transposed(scores), queries),
)


def _scores(layer, query, key):
    """Return the scaled scores of several heads in float32."""
    parts = private.attention.scores_of(layer)
    products = _einsums(parts.queries, parts.keys, parts.scores)
    return _product(products, parts.key_axes, query, key) * parts.scale


def _product(products, axes, query, key) -> Any:
    """Return the scores of queries and keys, summed in their dtype, in float32.

    Args:
        products: The `_Products` of tensors of these shapes.
        axes: The axes of ``key`` along which different keys lie.
        query: Tensor whose last axis the product sums over.
        key: Tensor likewise.
    """
    if dtypes.dtype_of(query) != "float16":
        return ops.cast(products.scores(query, key), "float32")

    # The gradient of the scores must not be multiplied by what queries are divided by.
    @ops.custom_gradient
    def product(query, key):
        fitted, factor = _fitted(query, key, axes)
        # One key of one feature, 1, gives each factor its place among the scores.
        one = ops.ones_like(ops.max(key, axis=(*axes, -1), keepdims=True), "float32")
        scores = ops.cast(products.scores(fitted, key), "float32")

        def gradients(*arguments, upstream=None):
            back = arguments[0] if upstream is None else upstream
            back = ops.cast(back, query.dtype)
            return products.queries(back, key), products.keys(back, query)

        return scores * products.scores(factor, one), gradients

    return product(query, key)


def _fitted(query, key, axes):
    """Return ``query`` divided so that its products with ``key`` fit, and by what.

    The divisors are float32, of the shape of ``query`` but for a last axis of size 1.
    """
    largest_query = ops.max(ops.abs(query), axis=-1, keepdims=True)
    largest_key = ops.max(ops.abs(key), axis=(*axes, -1), keepdims=True)
    bound = ops.cast(largest_query, "float32") * ops.cast(largest_key, "float32")
    exponent = ops.ceil(ops.log2(bound * (query.shape[-1] / _SAFE)))
    factor = ops.power(2.0, ops.maximum(exponent, 0.0))
    return ops.cast(ops.cast(query, "float32") / factor, query.dtype), factor


def _calculated(layer, calculate):
    @functools.wraps(calculate)
    def calculate_scores(query, key):
        if not dtypes.is_low(query):
            return calculate(query, key)
        if layer.score_mode != "dot" or isinstance(
            layer, keras.layers.AdditiveAttention
        ):
            return float32(calculate, output_dtype="float32")(query, key)
        scores = _product(_MATMULS, (1,), query, key)
        with private.variables.variables_as_stored():
            return scores if layer.scale is None else ops.multiply(scores, layer.scale)

    return calculate_scores


def _applied(layer, apply):
    @functools.wraps(apply)
    def apply_scores(scores, value, scores_mask=None, training=False):
        if not dtypes.is_low(value):
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

    return apply_scores
