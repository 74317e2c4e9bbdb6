"""Callbacks that show what low precision does while a model trains, and act on it."""

from keras_mp.callbacks.backup_and_restore import BackupAndRestore
from keras_mp.callbacks.flight_recorder import FlightRecorder
from keras_mp.callbacks.numerics_monitor import NumericsMonitor
from keras_mp.callbacks.overflow import Overflow
from keras_mp.callbacks.overflow_monitor import OverflowMonitor
from keras_mp.callbacks.retry_skipped import RetrySkipped
from keras_mp.callbacks.scale_guard import ScaleGuard
from keras_mp.callbacks.scaler_stats import ScalerStats
from keras_mp.callbacks.shadow_check import ShadowCheck

__all__ = [
    "BackupAndRestore",
    "FlightRecorder",
    "NumericsMonitor",
    "Overflow",
    "OverflowMonitor",
    "RetrySkipped",
    "ScaleGuard",
    "ScalerStats",
    "ShadowCheck",
]
