"""What a float32 island is: a layer that computes in float32 among lower precision."""

import keras

from keras_mp import casts, dtypes, flow


class Island:
    """Mixin for a layer that computes in float32 whatever the policy around it.

    The layer itself has a float32 policy, so Keras casts its float inputs and keeps
    its variables in float32. Its float outputs are handed back in the compute dtype of
    the policy it was given, the *outer* policy, or in ``output_dtype``.

    Args:
        *args: Of the layer.
        dtype: The outer policy. Defaults to the global one.
        output_dtype: None to hand back the outer compute dtype, or a float dtype such
            as ``"float32"``, for the model's last layer.
        **kwargs: Of the layer.

    Raises:
        ValueError: ``output_dtype`` is no float dtype.
    """

    def __init__(self, *args, dtype=None, output_dtype=None, **kwargs):
        super().__init__(*args, dtype="float32", **kwargs)
        # The rules of a policy are applied to it like to a layer's own.
        self.outer_policy = keras.dtype_policies.get(dtype)
        self.output_dtype = dtypes.checked_float_dtype(
            type(self).__name__, output_dtype
        )

    def __call__(self, *args, **kwargs):
        args, kwargs = keras.tree.map_structure(_in_float32, (args, kwargs))
        return super().__call__(*args, **kwargs)

    def handed_back(self, outputs):
        """Return ``outputs``, any structure, with its floats in the outer dtype."""
        dtype = self.output_dtype or self.outer_policy.compute_dtype
        return flow.rounded(outputs, dtype)

    def compute_output_spec(self, *args, **kwargs):
        return self.handed_back(super().compute_output_spec(*args, **kwargs))

    def get_config(self):
        return {
            **super().get_config(),
            "dtype": keras.dtype_policies.serialize(self.outer_policy),
            "output_dtype": self.output_dtype,
        }


def _in_float32(leaf):
    """Return a float tensor in float32; Keras casts symbolic ones in its graph."""
    return casts.cast_floats(leaf, "float32") if keras.ops.is_tensor(leaf) else leaf
