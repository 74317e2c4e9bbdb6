"""`Float32`: run any layer in float32 inside a low-precision model."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import dtypes, policies, private
from keras_mp.layers.island import Island
from keras_mp.saving import register


@register
class Float32(Island, keras.layers.Layer):
    """Runs a layer in float32 and hands its outputs back in the dtype around it.

    Float inputs are cast to float32 before the layer sees them, float outputs to the
    outer compute dtype after it; integers and masks pass unchanged. ``training``,
    masks, several or nested inputs and outputs, losses and weights work as for the
    layer itself.

    The layer and all layers inside it stay under a float32 policy afterwards.

    Args:
        layer: The `keras.layers.Layer` to run, built or not.
        output_dtype: None to hand back the outer compute dtype, or a float dtype:
            ``"float32"`` for the model's head.
        dtype: The outer policy. Defaults to the global one.
        name: Defaults to ``"float32_"`` and the layer's name.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        TypeError: ``layer`` is not a Keras layer.
        ValueError: ``layer`` already holds variables in lower precision.

    Example:

    >>> with policy_scope("mixed_float16"):
    ...     head = Float32(keras.layers.Dense(3), output_dtype="float32")
    >>> outputs = head(keras.ops.ones((2, 4), dtype="float16"))
    >>> keras.backend.standardize_dtype(outputs.dtype)
    'float32'
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        output_dtype: str | None = None,
        *,
        dtype: keras.DTypePolicy | str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_layer(layer)
        # Keras reads the signature of `call` in __init__, before attributes are set.
        self.__dict__["_wrapped"] = layer
        super().__init__(
            dtype=dtype,
            output_dtype=output_dtype,
            name=name or f"float32_{layer.name}",
            **kwargs,
        )
        self.layer = layer
        self.supports_masking: bool = layer.supports_masking
        private.layers.take_build_contract(self.build, layer.build)
        self._put_in_float32()

    def _put_in_float32(self) -> None:
        for inner in private.layers.walk(self.layer):
            policies.put_under(inner, policies.FLOAT32)

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Build the layer, with the arguments of its own ``build``."""
        if not self.layer.built:
            with policies.policy_scope("float32"):
                self.layer.build(*args, **kwargs)
            self._put_in_float32()

    def get_build_config(self) -> dict[str, Any]:
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        if not self.layer.built and config["layer"]:
            self.layer.build_from_config(config["layer"])
        self.built = True

    @property
    def call(self) -> Callable[..., Any]:
        """A function that calls the layer.

        It has the signature of the layer's ``call``, so that Keras passes masks and
        ``training``.
        """

        @functools.wraps(self._wrapped.call)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.handed_back(self._wrapped(*args, **kwargs))

        return call

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Float32":
        layer = keras.saving.deserialize_keras_object(
            config["layer"], custom_objects=custom_objects
        )
        rest = {k: v for k, v in config.items() if k not in ("layer", "dtype")}
        dtype = keras.dtype_policies.get(config["dtype"])
        return cls(layer, dtype=dtype, **rest)


def _check_layer(layer: Any) -> None:
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            f"Float32(layer) needs a keras layer. Got {layer!r} of type "
            f"{type(layer).__name__}. For a function, wrap it as "
            "Float32(keras.layers.Lambda(function)) or use "
            "keras_mp.layers.Activation(function)."
        )
    low = [
        variable.path
        for variable in layer.variables
        if keras.backend.standardize_dtype(variable.dtype) in dtypes.LOW_PRECISION
    ]
    if low:
        raise ValueError(
            f"Float32(layer): layer '{layer.name}' already holds variables in low "
            f"precision ({', '.join(low)}). Create it under a mixed or float32 policy, "
            "which keeps variables in float32."
        )
