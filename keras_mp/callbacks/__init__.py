"""Callbacks that show what loss scaling does while a model trains, and act on it."""

from keras_mp.callbacks.scale_guard import ScaleGuard
from keras_mp.callbacks.scaler_stats import ScalerStats

__all__ = ["ScaleGuard", "ScalerStats"]
