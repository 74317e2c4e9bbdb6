"""Keras's layers that compute in float32, or in the dtype of their inputs.

Their outputs are in float32 only for readers that accept it (`keras_mp.flow`).
"""

import functools
from collections.abc import Iterator
from typing import Any

import keras

from keras_mp import casts, dtypes, flow, precision_lists, private
from keras_mp.wrapping import wrap_once

_AROUND = "_keras_mp_dtype_around"


def keep(layer: keras.layers.Layer, dtype: str | None, wanted: bool = False) -> None:
    """Remember that ``layer`` is in float32, and that Keras alone would use ``dtype``.

    Args:
        layer: A layer that has got a float32 policy.
        dtype: The 16-bit dtype around it; None if Keras would use float32 as well.
        wanted: Whether a rule of the user's asks for it.
    """
    before, _ = vars(layer).get(_AROUND, (None, False))
    vars(layer)[_AROUND] = dtype, wanted
    changed = (dtype is None) != (before is None)
    if (
        isinstance(layer, precision_lists.DATA)
        and changed
        and hasattr(layer, "autocast")
    ):
        layer.autocast = dtype is None


def as_in_float32(layer: keras.layers.Layer) -> Iterator[private.attributes.Change]:
    """Yield what to change for a kept ``layer`` to hand on float32 to any reader."""
    if _AROUND in vars(layer):
        yield layer, {_AROUND: (None, False)}


def takes_raw_data(layer: keras.layers.Layer) -> bool:
    """Return whether a kept ``layer`` takes its inputs as they were before rounding.

    Then Keras must not cast them.
    """
    return isinstance(layer, precision_lists.DATA) and dtype_around(layer) is not None


def dtype_around(layer: keras.layers.Layer) -> str | None:
    """Return the dtype that Keras alone would use for a kept ``layer``, or None."""
    dtype, _ = vars(layer).get(_AROUND, (None, False))
    # The constructor of a layer may give it another policy after the hook saw one.
    own = vars(layer).get("_dtype_policy")
    return dtype if own is not None and own.compute_dtype == "float32" else None


def handed_on(layer: keras.layers.Layer, outputs: Any, raw: bool = False) -> Any:
    """Return ``outputs`` of a kept layer in the dtype for their reader."""
    dtype, wanted = vars(layer)[_AROUND]
    return flow.hand_on(outputs, dtype, wanted=wanted or raw)


def guard_kept(layer: keras.layers.Layer) -> None:
    """Make a kept layer of Keras's return the dtype for its reader."""
    wrap_once(layer, "call", "kept", functools.partial(_kept, layer))


def _kept(layer, call):
    @functools.wraps(call)
    def kept(*args, **kwargs):
        if dtype_around(layer) is None:
            return call(*args, **kwargs)
        reads = takes_raw_data(layer)
        raw = reads and not any(map(dtypes.is_low, keras.tree.flatten((args, kwargs))))
        arguments = flow.unrounded((args, kwargs)) if reads else (args, kwargs)
        args, kwargs = casts.cast_floats(arguments, "float32")
        return handed_on(layer, call(*args, **kwargs), raw)

    return kept


def guard_reader(layer: keras.layers.Layer) -> None:
    """Make a layer that looks up ids take them as they were before any rounding."""
    wrap_once(layer, "call", "reads", _reading)


def _reading(call):
    @functools.wraps(call)
    def reading(*args, **kwargs):
        args, kwargs = flow.unrounded((args, kwargs))
        return call(*args, **kwargs)

    return reading


def guard_follower(layer: keras.layers.Layer) -> None:
    """Make a layer that moves numbers return the dtype for its reader."""
    wrap_once(layer, "call", "follows", functools.partial(_follows, layer))


def _follows(layer, call):
    @functools.wraps(call)
    def follows(*args, **kwargs):
        dtype = layer.compute_dtype
        if dtype not in dtypes.LOW_PRECISION or layer.autocast:
            return call(*args, **kwargs)
        # Some layers create numbers, such as noise, in their compute dtype.
        policy = keras.DTypePolicy(_widest(dtype, args, kwargs))
        with private.attributes.attributes_for_now(
            private.attributes.policy_as(layer, policy)
        ):
            outputs = call(*args, **kwargs)
        return flow.hand_on(outputs, dtype, wanted=True)

    return follows


def _widest(dtype, *arguments):
    """Return the widest dtype of floats in ``arguments``; without any, ``dtype``."""
    leaves = filter(dtypes.is_float, keras.tree.flatten(arguments))
    found = {dtypes.dtype_of(leaf) for leaf in leaves} or {dtype}
    return keras.backend.result_type(*found)
