"""Loss-scale rules: frozen configs with ``init()`` and ``update(state, verdict)``."""

from typing import Any

import keras

from keras_mp.scaling.base import LossScale, Verdict
from keras_mp.scaling.dynamic import DynamicLossScale
from keras_mp.scaling.log_normal import LogNormalLossScale
from keras_mp.scaling.static import StaticLossScale

__all__ = [
    "DynamicLossScale",
    "LogNormalLossScale",
    "LossScale",
    "StaticLossScale",
    "Verdict",
    "get",
]

_NAMED = {"dynamic": DynamicLossScale, "log_normal": LogNormalLossScale}


def get(identifier: LossScale | str | dict[str, Any]) -> LossScale:
    """Return the loss-scale rule that ``identifier`` names or describes.

    Args:
        identifier: A `LossScale`, ``"dynamic"``, ``"log_normal"``, or the dict that
            `keras.saving.serialize_keras_object` makes of a rule.

    Returns:
        A `LossScale`: ``identifier`` itself if it is one.

    Raises:
        ValueError: ``identifier`` is none of these.

    Example:

    >>> get("dynamic").growth_interval
    2000
    """
    if isinstance(identifier, LossScale):
        return identifier
    if isinstance(identifier, str) and identifier in _NAMED:
        return _NAMED[identifier]()
    rule = _deserialized(identifier) if isinstance(identifier, dict) else None
    if isinstance(rule, LossScale):
        return rule
    raise ValueError(
        f"scaling={identifier!r} is not a loss-scale rule. Pass one of "
        f"{sorted(_NAMED)}, or a rule such as "
        "keras_mp.scaling.DynamicLossScale(initial_scale=1024.0) or "
        "keras_mp.scaling.StaticLossScale(128.0)."
    )


def _deserialized(config: dict) -> object:
    """Return the object that ``config`` describes; None for an unknown class."""
    try:
        return keras.saving.deserialize_keras_object(config)
    except TypeError:
        return None
