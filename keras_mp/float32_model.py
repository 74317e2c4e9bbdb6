"""A model that computes in float32 for a while, in place."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_mp import dtypes, guards, policies, private


@contextlib.contextmanager
def in_float32(model: keras.Model) -> Iterator[None]:
    """Make ``model`` compute in float32 inside the block, and as before after it.

    In place, because a copy of a model of the user's own class may compute something
    else. State that a call changes, such as that of a stateful RNN or of random seeds,
    is restored too, also after an exception.

    Raises:
        ValueError: A layer that computes in low precision is quantized.
    """
    with _state_kept(private.layers.state_of(model)), traced_in_float32(model):
        yield


@contextlib.contextmanager
def traced_in_float32(model: keras.Model) -> Iterator[None]:
    """Do as `in_float32` for a call that assigns no variable, such as of a trace."""
    layers = private.layers.walk(model)
    _check_quantized(model, layers)
    with private.attributes.attributes_for_now(_changes(layers)):
        for layer in layers:
            _recompute_statistics(layer)
        yield


def _check_quantized(model: keras.Model, layers: Iterable[keras.layers.Layer]) -> None:
    for layer in layers:
        if layer.quantization_mode and dtypes.computes_low(layer):
            raise ValueError(
                f"Model '{model.name}' cannot compute in float32 throughout: layer "
                f"'{layer.name}' is quantized ({layer.quantization_mode}) and computes "
                f"in {layer.compute_dtype} in between, which quantization fixes. Take "
                "the model as it was before model.quantize(...), or quantize it under "
                "a float32 policy: keras_mp.compile(model, ..., policy='float32') "
                "first."
            )


def _changes(
    layers: Iterable[keras.layers.Layer],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield objects with the attributes that they have in the block, as a dict.

    It includes those that the block assigns itself, so that they are restored.
    """
    for layer in layers:
        # A trace adds its tensors to the layer's losses.
        yield from private.attributes.losses_apart(layer)
        yield from guards.as_in_float32(layer)
        if isinstance(layer, keras.layers.InputLayer):
            yield from private.attributes.input_in(layer, "float32")
        elif hasattr(layer, "outer_policy"):
            yield layer, {"outer_policy": policies.FLOAT32}
            if layer.output_dtype in dtypes.LOW_PRECISION:
                yield layer, {"output_dtype": "float32"}
        elif dtypes.computes_low(layer):
            yield from private.attributes.policy_as(layer, policies.FLOAT32)
        yield from private.attributes.operations_in(layer, "float32")
        if _has_rounded_statistics(layer):
            yield layer, {"mean": layer.mean, "variance": layer.variance}


def _has_rounded_statistics(layer: keras.layers.Layer) -> bool:
    if not isinstance(layer, keras.layers.Normalization) or not layer.built:
        return False
    return keras.backend.standardize_dtype(layer.mean.dtype) in dtypes.LOW_PRECISION


def _recompute_statistics(layer: keras.layers.Layer) -> None:
    """Make a Normalization layer round its statistics to its present compute dtype.

    Keras rounds them once: in `finalize_state` those that it adapted to, in `build`
    those that it was given.
    """
    if not _has_rounded_statistics(layer):
        return
    if layer.input_mean is None:
        layer.finalize_state()
    else:
        layer.build(layer.get_build_config()["input_shape"])


@contextlib.contextmanager
def _state_kept(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Restore the values of the ``variables`` that the block changed."""
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            # Compared as bytes, because NaN differs from itself. Unchanged variables
            # are not written: each replica may hold a value of its own, and this is
            # their mean.
            if keras.ops.convert_to_numpy(variable).tobytes() != value.tobytes():
                variable.assign(value)
