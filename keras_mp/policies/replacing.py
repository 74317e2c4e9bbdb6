"""The policy that a layer has, and how another takes its place."""

import keras

from keras_mp import dtypes, guards, private
from keras_mp.policies.policy import FLOAT32


def policy_of(layer: keras.layers.Layer) -> keras.DTypePolicy:
    """Return the policy of ``layer``; of a float32 island, the one around it."""
    return getattr(layer, "outer_policy", layer.dtype_policy)


def put_under(layer: keras.layers.Layer, policy: keras.DTypePolicy) -> None:
    """Put one layer under ``policy``; a float32 island stays one.

    A layer whose compute dtype is no float (lookups, hashing), a quantized layer and
    a model's input keep their policy.
    """
    if hasattr(layer, "outer_policy"):
        layer.outer_policy = policy
    elif is_convertible(layer):
        guards.keep(layer, None)
        private.layers.set_layer_policy(layer, policy)
        if isinstance(layer, keras.Model):
            private.trainer.forget_dtypes(layer)
        if isinstance(layer, keras.layers.Normalization):
            # It keeps its mean and variance in the compute dtype that it had.
            layer.finalize_state()


def keep_in_float32(
    layer: keras.layers.Layer, dtype: str | None, wanted: bool = False
) -> None:
    """Put one layer under float32; it hands on ``dtype`` where its reader needs that.

    Args:
        layer: The layer.
        dtype: The compute dtype that it would have otherwise. Only one of 16 bits is
            remembered. None for a layer inside a container that is kept in float32.
        wanted: Whether a rule of the user's asks for it.
    """
    low = dtype in dtypes.LOW_PRECISION
    put_under(layer, FLOAT32)
    if hasattr(layer, "outer_policy") or layer.compute_dtype != "float32":
        return
    guards.keep(layer, dtype if low else None, wanted)
    if low:
        guards.guard_flow(layer)


def is_convertible(layer: keras.layers.Layer) -> bool:
    """Return whether the policy of ``layer`` may be replaced by another."""
    return (
        keras.backend.is_float_dtype(layer.compute_dtype)
        and layer.quantization_mode is None
        and not isinstance(layer, keras.layers.InputLayer)
    )


def is_low_anywhere(model: keras.layers.Layer) -> bool:
    """Return whether ``model`` or any layer in it computes in float16 or bfloat16."""
    return any(dtypes.computes_low(layer) for layer in private.layers.walk(model))
