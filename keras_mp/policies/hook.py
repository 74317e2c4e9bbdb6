"""What happens as a policy, a path, a sublayer or an attribute arrives on a layer."""

import contextlib
import functools
import warnings
import weakref
from collections.abc import Iterator

import keras

from keras_mp import dtypes, guards, precision_lists, private
from keras_mp.policies import deciding
from keras_mp.policies.policy import FLOAT32, Policy
from keras_mp.policies.replacing import keep_in_float32, policy_of

_ATTACHED = "_keras_mp_attached"

# The attributes of a layer that decide where it computes.
_DECISIVE = {
    "autocast",
    "built",
    private.graphs.SEQUENTIAL_LAYERS,
    *precision_lists.CONDITIONS,
}

# As many items as there are files being loaded.
_loading = []


@functools.cache
def install() -> None:
    """Have layers follow policies as they get them; done for the first `Policy`."""
    if not private.layers.layer_hook(_choose_policy, _attached, _assigned):
        warnings.warn(
            f"keras_mp.Policy: Keras {keras.__version__} does not tell when a layer "
            "gets its policy. Rules and float32 layers take effect when a model is "
            "compiled: use keras_mp.compile or keras_mp.convert.",
            stacklevel=4,
        )


@contextlib.contextmanager
def own_code_guarded() -> Iterator[None]:
    """Guard code of the user's own under any policy in 16 bits, as a file is loaded.

    A policy without rules is saved as one of Keras's. And Keras makes the graph of a
    model anew, which runs all code in it, before the model is there to be guarded.
    """
    install()
    _loading.append(True)
    try:
        yield
    finally:
        _loading.pop()


def _choose_policy(layer, policy, path, attribute):
    """Return the policy that ``layer`` gets if it is given ``policy``."""
    if not isinstance(policy, Policy):
        low = dtypes.computes_low(policy)
        if _loading and low and private.layers.has_own_call(layer):
            guards.guard_own(layer, strict=False)
        return policy
    deciding.remember_policy(layer, policy)
    chosen = policy.for_layer(layer, path)
    if attribute == "outer_policy":
        return chosen
    low = dtypes.computes_low(chosen)
    if low and deciding.list_of(layer, path) == "float32":
        chosen = FLOAT32
    if chosen is FLOAT32 and dtypes.computes_low(policy):
        wanted = policy.matches(layer, path)
        guards.keep(layer, policy.compute_dtype, wanted)
    if dtypes.computes_low(policy) and private.layers.has_own_call(layer):
        # Keras may run its code to build it.
        guards.guard_own(layer, policy.strict)
    return chosen


def _attached(layer, sublayer):
    """Apply rules and lists to ``sublayer``, which is put into ``layer``."""
    policy = deciding.remembered_policy(layer)
    inner_policy = deciding.remembered_policy(sublayer)
    have_rules = any(each and each.all_rules for each in (policy, inner_policy))
    outer_path = private.layers.path_of(layer)
    path = f"{outer_path}/{sublayer.name}"
    if have_rules:
        deciding.apply_float32_rules(
            sublayer,
            path,
            [(layer, outer_path)],
            policy_of(layer),
            inside_kept=guards.dtype_around(layer) is not None,
        )
    if policy is None or guards.covers_sublayers(layer):
        return
    if have_rules or inner_policy is None:
        deciding.make_all_safe(sublayer, path, policy)
    if deciding.lists_decide(layer) and deciding.list_of(layer, outer_path) is None:
        # Inputs are cast before a layer is built.
        guards.keep_inputs(layer, sublayer)


def _assigned(layer, name, value):
    """Return what ``layer`` gets as attribute ``name`` that is given ``value``.

    Its inputs are cast before it is built. So what decides about that is looked at as
    it arrives, and the guards, which need the whole layer, are put on when it is built.
    """
    if name not in _DECISIVE or deciding.remembered_policy(layer) is None:
        return value
    newly_built = name == "built" and value and not vars(layer).get("built")
    if vars(layer)["_dtype_policy"].compute_dtype not in dtypes.LOW_PRECISION:
        if newly_built and guards.dtype_around(layer) is not None:
            guards.guard_flow(layer)
        raw = name == "autocast" and guards.takes_raw_data(layer)
        return False if raw else value
    path = private.layers.path_of(layer)
    if name == "autocast" and value and deciding.list_of(layer, path) == "follow":
        return deciding.autocast_of_follower(layer)
    if _is_denied_with(layer, path, name, value):
        keep_in_float32(layer, layer.compute_dtype)
    if newly_built:
        deciding.make_safe(layer, path)
    if isinstance(layer, keras.Sequential):
        _assigned_to_sequential(layer, name, value)
    return value


def _assigned_to_sequential(layer, name, value):
    if name == private.graphs.SEQUENTIAL_LAYERS:
        private.graphs.widen_made_input(value)
    elif name == "built":
        # Keras assigns it whenever a layer is added; nothing else shows that one was.
        seen = vars(layer).setdefault(_ATTACHED, weakref.WeakSet())
        for inner in private.layers.sublayers(layer):
            if inner not in seen:
                seen.add(inner)
                _attached(layer, inner)


def _is_denied_with(layer, path, name, value):
    """Return whether ``layer`` is on the deny list with this value of an attribute."""
    return deciding.list_of(layer, path) is None and any(
        rule.matches(layer, name, value)
        for rule in precision_lists.DENY
        if isinstance(rule, precision_lists.When)
    )
