"""An existing model under another dtype policy."""

import keras

from keras_mp import distribute, policies, private
from keras_mp.layers import Island
from keras_mp.placement import PlacementReport, placement_report


def convert(
    model: keras.layers.Layer, policy: keras.DTypePolicy | str
) -> PlacementReport:
    """Put every layer of ``model`` under ``policy``, in place, and say what runs where.

    The variables stay the very same objects: weights are shared, not copied, and a
    model that is converted to mixed precision and back to float32 has not changed by a
    bit. Only a model of pure float16 or bfloat16 gets new values: its variables become
    float32, which is exact. If it was compiled, compile it again.

    Layers whose compute dtype is no float (lookups, hashing) and quantized layers keep
    their policy. A variable that its layer made wider than its policy's, such as a mask
    in float64, keeps its dtype. A float32 island stays one and hands back the new
    compute dtype. A layer used in several places is in float32 if a rule matches it in
    any. What is not safe in 16 bits gets float32 or a guard (`keras_mp.Policy`), which
    stays whatever it is put under later; `keras_mp.compile` adds that the model returns
    float32, and loss scaling.

    Args:
        model: A Keras model or layer: Sequential, Functional or subclassed, built or
            not, new or loaded, from `keras.applications` too.
        policy: A `Policy`, any other Keras dtype policy, a name, or ``"auto"``.

    Returns:
        A `PlacementReport`: the layers with their compute dtypes, and why. Of a model
        that is not built it names the layers that exist.

    Raises:
        TypeError: ``model`` is no Keras layer.
        ValueError: No such policy; or the model's variables would have to be rounded
            to the policy's dtype. Then nothing has been changed.

    Does not synchronise with the device.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Softmax()]
    ... )
    >>> report = keras_mp.convert(model, "mixed_float16")
    >>> [place.compute_dtype for place in report]
    ['float16', 'float16', 'float32']
    >>> report[-1].reason
    'not safe in 16 bits'
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "keras_mp.convert(model, policy) needs a Keras model or layer. Got "
            f"{model!r} of type {type(model).__name__}."
        )
    target = policies.get(policy)
    plan = {}
    for layer, layer_policy in _plan(model, target, model.name, False):
        if plan.get(id(layer), (None, None))[1] is not policies.FLOAT32:
            plan[id(layer)] = layer, layer_policy
    retyped = _to_retype(model, target, plan.values())
    for layer, layer_policy in plan.values():
        if layer_policy is policies.FLOAT32:
            policies.keep_in_float32(layer, target.compute_dtype, wanted=True)
        else:
            policies.put_under(layer, layer_policy)
    _retype(model, retyped)
    for layer in private.layers.walk(model):
        policies.remember_policy(layer, target)
    policies.apply_rules(model)
    return placement_report(model)


def _plan(layer, policy, path, inside_match):
    """Yield (layer, its new policy) for all layers that change."""
    rules = policy if isinstance(policy, policies.Policy) else None
    matched = inside_match or (rules is not None and rules.matches(layer, path))
    if policies.is_convertible(layer):
        new = rules.for_layer(layer, path) if rules and not matched else policy
        yield layer, policies.FLOAT32 if matched else new
    if not isinstance(layer, Island):
        for inner in private.layers.sublayers(layer):
            yield from _plan(inner, policy, f"{path}/{inner.name}", matched)


def _to_retype(model, policy, plan):
    """Return the variables to retype, with their new dtype.

    Raises:
        ValueError: One would be rounded.
    """
    wrong = [
        (variable, new.variable_dtype)
        for layer, new in plan
        if not isinstance(layer, Island)
        for variable in private.layers.own_variables(layer)
        if keras.backend.is_float_dtype(variable.dtype)
        and variable.dtype != new.variable_dtype
        and not _is_wide_on_purpose(layer, variable, new.variable_dtype)
    ]
    rounded = [
        f"{variable.path} ({keras.backend.standardize_dtype(variable.dtype)})"
        for variable, dtype in wrong
        if _would_round(variable, dtype)
    ]
    if rounded:
        shown = ", ".join(rounded[:3]) + (", ..." if len(rounded) > 3 else "")
        raise ValueError(
            f"Model '{model.name}' cannot be put under policy '{policy.name}', which "
            f"keeps variables in {policy.variable_dtype}: the model is built and holds "
            f"{shown}, which would be rounded. Build it under that policy and load the "
            "weights into it."
        )
    return wrong


def _would_round(variable, dtype):
    return keras.backend.result_type(variable.dtype, dtype) != dtype


def _is_wide_on_purpose(layer, variable, dtype):
    """Return whether ``layer`` chose the dtype of ``variable``, wider than ``dtype``.

    Such as a mask in float64: its policy had no say in it either.
    """
    return variable.dtype != layer.variable_dtype and _would_round(variable, dtype)


def _retype(model, retyped):
    """Give variables their new dtypes; a compiled model is to be compiled again."""
    with distribute.scope_of(model):
        for variable, dtype in retyped:
            private.variables.retype(variable, dtype)
    if retyped and getattr(model, "compiled", False):
        # Its optimizer's variables are of the old dtypes.
        private.trainer.forget_compiled(model)
