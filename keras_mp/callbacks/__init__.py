"""Callbacks that show what loss scaling does while a model trains."""

from keras_mp.callbacks.scaler_stats import ScalerStats

__all__ = ["ScalerStats"]
