"""Where a layer computes: by the rules of its policy, then by the precision lists."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import keras

from keras_mp import dtypes, guards, precision_lists, private
from keras_mp.policies.policy import Policy
from keras_mp.policies.replacing import (
    is_convertible,
    is_low_anywhere,
    keep_in_float32,
    policy_of,
)

_POLICY = "_keras_mp_rules"
_FOLLOWS = "_keras_mp_follows"

#: A layer and the path under which it was found.
_Located = tuple[keras.layers.Layer, str]


def apply_rules(layer: keras.layers.Layer) -> None:
    """Make every layer in ``layer`` safe that computes in low precision.

    Rules of a policy come first, then the lists of `keras_mp.precision_lists`. Under a
    policy of keras_mp's, rules on a layer's name and class apply from the start, and
    rules on its path and attributes when it is built or put into another. This function
    applies what only a finished model shows, and does all of it for layers under
    Keras's own policies.
    """
    apply_float32_rules(layer, layer.name)
    make_all_safe(layer, layer.name, None)


def apply_float32_rules(
    layer: keras.layers.Layer,
    path: str,
    around: Sequence[_Located] = (),
    outer: keras.DTypePolicy | None = None,
    *,
    inside_kept: bool = False,
) -> None:
    """Put ``layer`` and those inside it in float32 where their policy has such a rule.

    Args:
        layer: The layer.
        path: Where it was found.
        around: The layers around it, each as (layer, path).
        outer: The policy around it. A layer that was loaded in float32 no longer has
            the policy whose rule kept it there.
        inside_kept: Whether a layer around it is kept in float32.
    """
    policy: Any = policy_of(layer)
    if not isinstance(policy, Policy) and layer.compute_dtype == "float32":
        policy = outer
    located = [*around, (layer, path)]
    kept = isinstance(policy, Policy) and any(policy.matches(*each) for each in located)
    if kept:
        dtype = None if inside_kept else policy.compute_dtype
        keep_in_float32(layer, dtype, wanted=True)
    for inner in private.layers.sublayers(layer):
        apply_float32_rules(
            inner,
            f"{path}/{inner.name}",
            located,
            policy,
            inside_kept=inside_kept or kept,
        )


def make_all_safe(
    layer: keras.layers.Layer, path: str, around: keras.DTypePolicy | None
) -> None:
    """Make ``layer`` and those inside it safe; ``around`` is the policy around it."""
    policy = remembered_policy(layer) or around
    remember_policy(layer, policy)
    make_safe(layer, path)
    if not guards.covers_sublayers(layer):
        for inner in private.layers.sublayers(layer):
            make_all_safe(inner, f"{path}/{inner.name}", policy)


def make_safe(layer: keras.layers.Layer, path: str) -> None:
    """Make one layer safe by the lists, if it computes in low precision."""
    decides = lists_decide(layer)
    found = list_of(layer, path) if decides else None
    if found == "follow":
        layer.autocast = layer.autocast and autocast_of_follower(layer)
        guards.guard_follower(layer)
    elif vars(layer).pop(_FOLLOWS, False):
        layer.autocast = True
    if found == "float32":
        keep_in_float32(layer, layer.compute_dtype)
    elif decides and found is None:
        guards.guard(layer, strict=_rules_of(layer).strict)
    elif guards.dtype_around(layer) or _holds_low(layer):
        guards.guard_flow(layer)


def _holds_low(layer):
    return bool(private.layers.sublayers(layer)) and is_low_anywhere(layer)


def autocast_of_follower(layer: keras.layers.Layer) -> bool:
    """Return the ``autocast`` of a layer that follows, and remember that it does."""
    vars(layer)[_FOLLOWS] = True
    return False


def lists_decide(layer: keras.layers.Layer) -> bool:
    """Return whether the precision lists decide how ``layer`` computes."""
    return dtypes.computes_low(layer) and is_convertible(layer)


def list_of(
    layer: keras.layers.Layer, path: str
) -> Literal["allow", "follow", "float32"] | None:
    """Return the list that has ``layer``: "float32", "follow", "allow" or None.

    "allow" means a rule of the policy. Layers on `precision_lists.ALLOW` compute in low
    precision, as layers on no list do, so that for them it is None.
    """
    rules = _rules_of(layer)
    if precision_lists.matches_any(rules.allow, layer, path):
        return "allow"
    if precision_lists.matches_any(rules.follow, layer, path):
        return "follow"
    if private.layers.is_subclass_of_the_users(layer):
        return None  # its own code takes what Keras gives it
    if precision_lists.matches_any(precision_lists.DENY, layer, path):
        return "float32"
    return "follow" if type(layer) in precision_lists.FOLLOW else None


def is_kept_by_rule(
    layer: keras.layers.Layer, path: str, around: Sequence[_Located]
) -> bool:
    """Return whether a rule keeps ``layer`` or a layer around it in float32.

    Args:
        layer: The layer.
        path: Where it was found.
        around: The layers around it, each as (layer, path).
    """
    rules = _rules_of(layer)
    return any(rules.matches(*each) for each in (*around, (layer, path)))


def remember_policy(layer: keras.layers.Layer, policy: Any) -> None:
    """Remember that ``layer`` is under ``policy``, of keras_mp's or not.

    The layer itself has Keras's own policy where no rule has to be saved with it.
    """
    vars(layer)[_POLICY] = policy if isinstance(policy, Policy) else _without_rules()


def remembered_policy(layer: keras.layers.Layer) -> Policy | None:
    """Return the policy that `remember_policy` was given for ``layer``, or None."""
    return vars(layer).get(_POLICY)


def _rules_of(layer):
    return remembered_policy(layer) or _without_rules()


@functools.cache
def _without_rules():
    """Return the policy that stands for having none of keras_mp's."""
    return Policy("float32")
