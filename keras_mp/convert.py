"""An existing model under another dtype policy."""

import keras

from keras_mp import lists, policies, private
from keras_mp.layers import Island


def apply_policy(model: keras.layers.Layer, policy: keras.DTypePolicy | str) -> None:
    """Put every layer of ``model`` under ``policy``, in place; weights are kept.

    Layers whose compute dtype is no float (lookups, hashing) and quantized layers keep
    their policy; `Normalization` layers, whose statistics are those of raw data, get a
    float32 policy. A float32 island stays one and hands back the new compute dtype. A
    layer used in several places is in float32 if a rule matches it in any.

    Args:
        model: A Keras model or layer, built or not.
        policy: A `Policy`, any other Keras dtype policy, or a name.

    Raises:
        ValueError: The model's variables are of another dtype than the policy's; then
            nothing has been changed.

    Does not synchronise with the device.
    """
    policy = policies.get(policy)
    plan = {}
    for layer, layer_policy in _plan(model, policy, model.name, False):
        if plan.get(id(layer), (None, None))[1] is not policies.FLOAT32:
            plan[id(layer)] = layer, layer_policy
    _check_variables(model, policy, plan.values())
    for layer, layer_policy in plan.values():
        policies.put_under(layer, layer_policy)
    for layer in private.walk(model):
        policies.obey(layer, policy)
    policies.resolve_rules(model)


def unmatched_rules(model: keras.layers.Layer, policy: policies.Policy) -> list:
    """Return the rules of ``policy`` that match no layer of ``model``, as a list."""
    found = list(policies.layers_with_paths(model))
    return [
        rule
        for rule in policy.all_rules
        if not any(lists.matches(rule, *place) for place in found)
    ]


def _plan(layer, policy, path, inside_match):
    """Yield (layer, its new policy) for all layers that change."""
    rules = policy if isinstance(policy, policies.Policy) else None
    matched = inside_match or (rules is not None and rules.matches(layer, path))
    if policies.is_convertible(layer):
        stays = matched or isinstance(layer, keras.layers.Normalization)
        new = rules.for_layer(layer, path) if rules and not stays else policy
        yield layer, policies.FLOAT32 if stays else new
    if not isinstance(layer, Island):
        for inner in private.sublayers(layer):
            yield from _plan(inner, policy, f"{path}/{inner.name}", matched)


def _check_variables(model, policy, plan):
    """Raise if a layer that has variables would need them in another dtype."""
    wrong = [
        f"{variable.path} ({keras.backend.standardize_dtype(variable.dtype)})"
        for layer, new in plan
        if not isinstance(layer, Island) and layer.variable_dtype != new.variable_dtype
        for variable in private.own_variables(layer)
        if keras.backend.is_float_dtype(variable.dtype)
    ]
    if wrong:
        shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise ValueError(
            f"Model '{model.name}' cannot be put under policy '{policy.name}', which "
            f"keeps variables in {policy.variable_dtype}: the model is built and holds "
            f"{shown}. Build it under that policy and load the weights into it."
        )
