"""Which layers compute in float32, which in low precision, and which follow: data.

Three lists, ``DENY``, ``ALLOW`` and ``FOLLOW``, as PyTorch's autocast and TensorFlow's
graph rewrite have them, and ``INSIDE``, of layers in low precision whose computation is
not. A `Policy` extends them by rules of its own, which come first. `sources` says where
each entry comes from.

A rule is a layer class, or a regular expression on names and paths (see
`keras_mp.Policy`), or a `When`: a class under a condition on one of its attributes.
"""

from keras_mp.precision_lists.functions import (
    FLOAT32_FUNCTIONS,
    FLOAT32_OPERATIONS,
    FLOAT32_OPS,
    INSIDE_FUNCTIONS,
    is_activation,
    is_float32_function,
    is_steep_function,
    moves_only,
)
from keras_mp.precision_lists.layers import (
    ALLOW,
    CONDITIONS,
    DATA,
    DENY,
    EMBEDDINGS,
    FOLLOW,
    INSIDE,
    PRODUCTS,
)
from keras_mp.precision_lists.losses import LOGIT_FUNCTIONS, LOGIT_LOSSES
from keras_mp.precision_lists.rules import When, matches, matches_any
from keras_mp.precision_lists.sources import SOURCES, Source

__all__ = [
    "ALLOW",
    "CONDITIONS",
    "DATA",
    "DENY",
    "EMBEDDINGS",
    "FLOAT32_FUNCTIONS",
    "FLOAT32_OPERATIONS",
    "FLOAT32_OPS",
    "FOLLOW",
    "INSIDE",
    "INSIDE_FUNCTIONS",
    "LOGIT_FUNCTIONS",
    "LOGIT_LOSSES",
    "PRODUCTS",
    "SOURCES",
    "Source",
    "When",
    "is_activation",
    "is_float32_function",
    "is_steep_function",
    "matches",
    "matches_any",
    "moves_only",
]
