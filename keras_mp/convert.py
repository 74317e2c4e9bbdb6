"""An existing model under another dtype policy."""

import keras

from keras_mp import policies, private
from keras_mp.layers import Island

_FLOAT32 = keras.DTypePolicy("float32")


def apply_policy(model, policy):
    """Put every layer of ``model`` under ``policy``, in place; weights are kept.

    Layers whose compute dtype is no float (lookups, hashing) and quantized layers keep
    their policy. A float32 island stays one and hands back the new compute dtype.

    Args:
        model: A Keras model or layer, built or not.
        policy: A `Policy`, any other Keras dtype policy, or a name.

    Raises:
        ValueError: The model's variables are of another dtype than the policy's; then
            nothing has been changed.

    Does not synchronise with the device.
    """
    policy = policies.get(policy)
    _check_variables(model, policy)
    for layer, layer_policy in _plan(model, policy, model.name, False):
        if isinstance(layer, Island):
            layer.outer_policy = layer_policy
        else:
            private.set_layer_policy(layer, layer_policy)


def resolve_rules(model):
    """Apply the rules that the policies in ``model`` hold to its layers' paths.

    A layer obeys rules on its name and class from the start, and on its path once it
    is built; only the finished model shows where weightless layers and those of a
    functional model stand.
    """
    for layer, path in layers_with_paths(model):
        policy = layer.dtype_policy
        if isinstance(policy, policies.Policy):
            private.set_layer_policy(layer, policy.for_layer(layer, path))


def layers_with_paths(layer, path=None):
    """Yield each layer inside ``layer``, itself first, with its path.

    The path joins the names of the containers down to the layer, as the model is put
    together; unlike Keras's ``layer.path`` it is the same before and after the model
    is built, saved and loaded. A layer used in two places comes twice.
    """
    path = path or layer.name
    yield layer, path
    for inner in private.sublayers(layer):
        yield from layers_with_paths(inner, f"{path}/{inner.name}")


def unmatched_rules(model, policy):
    """Return the rules of ``policy`` that match no layer of ``model``, as a list."""
    found = list(layers_with_paths(model))
    return [
        rule
        for rule in policy.rules
        if not any(policies.rule_matches(rule, *place) for place in found)
    ]


def _plan(layer, policy, path, inside_match):
    """Yield (layer, its new policy) for all layers that change."""
    rules = policy if isinstance(policy, policies.Policy) else None
    matched = inside_match or (rules is not None and rules.matches(layer, path))
    if _is_convertible(layer):
        if matched:
            yield layer, _FLOAT32
        else:
            yield layer, rules.for_layer(layer, path) if rules else policy
    if not isinstance(layer, Island):
        for inner in private.sublayers(layer):
            yield from _plan(inner, policy, f"{path}/{inner.name}", matched)


def _is_convertible(layer):
    return (
        keras.backend.is_float_dtype(layer.compute_dtype)
        and layer.quantization_mode is None
        and not isinstance(layer, keras.layers.InputLayer)
    )


def _check_variables(model, policy):
    wrong = [
        f"{variable.path} ({keras.backend.standardize_dtype(variable.dtype)})"
        for variable in model.variables
        if keras.backend.is_float_dtype(variable.dtype)
        and keras.backend.standardize_dtype(variable.dtype) != policy.variable_dtype
    ]
    if wrong:
        shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise ValueError(
            f"Model '{model.name}' cannot be put under policy '{policy.name}', which "
            f"keeps variables in {policy.variable_dtype}: the model is built and holds "
            f"{shown}. Build it under that policy and load the weights into it."
        )
