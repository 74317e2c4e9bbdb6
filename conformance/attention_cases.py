"""The layers of attention, and those of ids: embeddings, lookups, buckets."""

from __future__ import annotations

import keras
import numpy as np

from conformance.cases import (
    Case,
    Given,
    calling,
    large,
    logits,
    normal,
)
from conformance.layer_cases import layer

_SHAPE = (2, 8, 16)


def _triples(scenario, **kwargs):
    """The same scenario for query, value and key as three arguments."""

    def make(random):
        return Given(*(scenario(random).args[0] for _ in range(3)), **kwargs)

    return make


def _lists(scenario, **kwargs):
    """The same scenario for query, value and key as one list."""

    def make(random):
        return Given([scenario(random).args[0] for _ in range(3)], **kwargs)

    return make


def _padding():
    mask = np.ones(_SHAPE[:2], bool)
    mask[0, 5:] = False
    mask[1] = False
    return mask


def _exact(scenario):
    """Inputs whose products are exact, in float32 too, and so are their ties."""
    return lambda random: Given(2.0**14 * np.sign(scenario(random).args[0]))


def _projected(scenario):
    """Inputs whose projections fit: they are products in 16 bits like any other."""
    return lambda random: Given(scenario(random).args[0] / 16)


def _scenarios(of, sharp, fitted):
    """The scenarios of attention, ``of`` a scenario for one of its three inputs."""
    return {
        "ordinary": of(normal(_SHAPE)),
        "small": of(normal(_SHAPE, 1e-4)),
        "large": of(large(_SHAPE)),
        "extreme": of(fitted(logits(_SHAPE))),
        "sharp": of(normal(_SHAPE, sharp)),
    }


def _attention():
    mask = _padding()
    lists = {
        **_scenarios(_lists, 30.0, _exact),
        "masked": _lists(normal(_SHAPE), mask=[mask, mask]),
        "causal": _lists(normal(_SHAPE), use_causal_mask=True),
    }
    for score_mode in ("dot", "concat"):
        for scaled in (False, True):
            yield layer(
                "Attention",
                lists,
                variant=f"{score_mode}{', scaled' if scaled else ''}",
                # Between ties, the gradient of the scale is exactly 0: all noise.
                unstable=("extreme",) if scaled else (),
                score_mode=score_mode,
                use_scale=scaled,
            )
    yield layer("AdditiveAttention", lists)
    triples = {
        **_scenarios(_triples, 5.0, _projected),
        "masked": _triples(normal(_SHAPE), query_mask=mask, value_mask=mask),
        "masked rows": _triples(normal(_SHAPE), attention_mask=_rows()),
        "causal": _triples(normal(_SHAPE), use_causal_mask=True),
        "8,192 keys": _many_keys,
    }
    # With dropout, even without training, attention is computed step by step; without
    # it by one fused function.
    for dropout in (0.0, 0.1):
        variant = "dropout" if dropout else ""
        inputs = calling(triples, training=False)
        # Scores of 1e8 choose one key, by less than projections in 16 bits are exact.
        unstable = ("large", "extreme")
        yield layer(
            "MultiHeadAttention",
            inputs,
            variant=variant,
            num_heads=2,
            key_dim=8,
            dropout=dropout,
            unstable=unstable,
        )
        yield layer(
            "GroupQueryAttention",
            inputs,
            variant=variant,
            head_dim=8,
            num_query_heads=4,
            num_key_value_heads=2,
            dropout=dropout,
            unstable=unstable,
        )
    yield layer(
        "MultiHeadAttention",
        {"scores": _scores},
        variant="return_attention_scores",
        num_heads=2,
        key_dim=8,
    )


def _rows():
    """A mask of attention, of which a row is masked in full."""
    mask = np.ones((2, 8, 8), bool)
    mask[0, :, 5:] = False
    mask[1, 3] = False
    return mask


def _many_keys(random):
    query, value = (random.standard_normal((1, length, 16)) for length in (2, 8192))
    return Given(query, value)


def _scores(random):
    x = random.standard_normal(_SHAPE)
    return Given(x, x, return_attention_scores=True)


def _ids(random):
    """Ids of a vocabulary of 100,000 in floats, as from one array of all features."""
    return Given(np.array([[1.0, 2049.0, 4099.0], [70001.0, 99999.0, 0.0]]))


def _behind_flatten():
    flatten, embedding = keras.layers.Flatten(), keras.layers.Embedding(100_000, 2)
    return keras.Sequential([flatten, embedding])


class EmbedsIds(keras.Model):
    """A model of a user's own, whose inputs Keras casts before the embedding's."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(100_000, 2)

    def call(self, inputs):
        return self.embedding(inputs)


def _whole(random):
    """The same ids in integers."""
    return Given(_ids(random).args[0].astype("int32"))


def _lookups():
    ids = {"ids": _ids, "integers": _whole}
    yield layer("Embedding", ids, input_dim=100_000, output_dim=2)
    yield layer("Embedding", ids, variant="after Flatten", make=_behind_flatten)
    yield layer("Embedding", ids, variant="in a subclassed model", make=EmbedsIds)
    yield layer("ReversibleEmbedding", ids, input_dim=100_000, output_dim=2)
    yield layer(
        "ReversibleEmbedding",
        {
            name: calling({name: scenario}, reverse=True)[name]
            for name, scenario in {
                "ordinary": normal((2, 16)),
                "large": large((2, 16)),
            }.items()
        },
        variant="reverse",
        input_dim=64,
        output_dim=16,
    )
    for mode in ("multi_hot", "one_hot", "count"):
        yield layer(
            "CategoryEncoding",
            {"ids": _ids},
            variant=mode,
            num_tokens=100_000,
            output_mode=mode,
            differentiable=False,
        )
    vocabulary = [1, 2049, 4099, 70001, 99999]
    for mode in ("int", "multi_hot"):
        yield layer(
            "IntegerLookup",
            ids,
            variant=mode,
            vocabulary=vocabulary,
            output_mode=mode,
            differentiable=False,
        )
    yield layer("Hashing", {"integers": _whole}, num_bins=64, differentiable=False)
    yield layer(
        "HashedCrossing",
        {
            "integers": lambda random: Given(
                (np.array([2049, 70001]), np.array([4099, 99999]))
            )
        },
        num_bins=64,
        differentiable=False,
    )
    edges = [0.0, 1.0, 2048.5, 4098.5, 70000.5, 90000.0]
    for mode in ("int", "one_hot"):
        yield layer(
            "Discretization",
            {"ids": _ids, "ordinary": normal((4, 3)), "large": large((4, 3))},
            variant=mode,
            bin_boundaries=edges,
            output_mode=mode,
            differentiable=False,
        )


def attention_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> "MultiHeadAttention" in {case.name for case in attention_cases()}
    True
    """
    return [*_attention(), *_lookups()]
