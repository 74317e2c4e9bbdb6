"""Dtype policies: the class, how it reaches a layer, and what it decides there."""

from keras_mp.policies.current import get, policy_scope, set_policy
from keras_mp.policies.deciding import (
    apply_rules,
    is_kept_by_rule,
    list_of,
    remember_policy,
)
from keras_mp.policies.hook import own_code_guarded
from keras_mp.policies.policy import FLOAT32, Policy
from keras_mp.policies.replacing import (
    is_convertible,
    is_low_anywhere,
    keep_in_float32,
    policy_of,
    put_under,
)
from keras_mp.policies.unmatched import unmatched_rules

__all__ = [
    "FLOAT32",
    "Policy",
    "apply_rules",
    "get",
    "is_convertible",
    "is_kept_by_rule",
    "is_low_anywhere",
    "keep_in_float32",
    "list_of",
    "own_code_guarded",
    "policy_of",
    "policy_scope",
    "put_under",
    "remember_policy",
    "set_policy",
    "unmatched_rules",
]
