"""Float32 islands: layers that compute in float32 in a low-precision model."""

from typing import Any

import keras

from keras_mp import casts, dtypes, flow


class Island:
    """Mixin for a layer that computes in float32 whatever the policy around it.

    The layer itself has a float32 policy, so Keras casts its float inputs and keeps
    its variables in float32. Its float outputs are handed back in the compute dtype of
    the policy it was given, the *outer* policy, or in ``output_dtype``.

    Args:
        *args: The arguments of the layer.
        dtype: The outer policy. Defaults to the global one.
        output_dtype: None to hand back the outer compute dtype, or a float dtype such
            as ``"float32"``, for the model's last layer.
        **kwargs: Keyword arguments of the layer.

    Raises:
        ValueError: ``output_dtype`` is not a float dtype.
    """

    def __init__(
        self,
        *args: Any,
        dtype: keras.DTypePolicy | str | None = None,
        output_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, dtype="float32", **kwargs)  # pyright: ignore
        # A rule that matches the layer replaces its outer policy, too.
        self.outer_policy: keras.DTypePolicy = keras.dtype_policies.get(dtype)
        self.output_dtype: str | None = dtypes.checked_float_dtype(
            type(self).__name__, output_dtype
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(_in_float32, (args, kwargs))
        return super().__call__(*args, **kwargs)  # pyright: ignore

    def handed_back(self, outputs: Any) -> Any:
        """Return ``outputs``, any structure, with its floats in the outer dtype."""
        dtype = self.output_dtype or self.outer_policy.compute_dtype
        return flow.rounded(outputs, dtype)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().compute_output_spec(*args, **kwargs)  # pyright: ignore
        return self.handed_back(outputs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # pyright: ignore
            "dtype": keras.dtype_policies.serialize(self.outer_policy),
            "output_dtype": self.output_dtype,
        }


def _in_float32(leaf: Any) -> Any:
    """Return a float tensor in float32; Keras casts symbolic ones in its graph."""
    return casts.cast_floats(leaf, "float32") if keras.ops.is_tensor(leaf) else leaf
