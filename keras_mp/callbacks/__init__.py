"""Callbacks that show what loss scaling does while a model trains, and act on it."""

from keras_mp.callbacks.flight_recorder import FlightRecorder
from keras_mp.callbacks.overflow import Overflow
from keras_mp.callbacks.overflow_monitor import OverflowMonitor
from keras_mp.callbacks.scale_guard import ScaleGuard
from keras_mp.callbacks.scaler_stats import ScalerStats

__all__ = ["FlightRecorder", "Overflow", "OverflowMonitor", "ScaleGuard", "ScalerStats"]
