"""A model's outputs in float32, for losses, metrics and who reads its predictions."""

import functools

from keras_mp import numerics


def widen(model):
    """Have ``model`` return float32 where it would return float16 or bfloat16.

    Losses that Keras compiles cast for themselves; metrics, functions and
    ``predict`` do not. The last layer's products stay in low precision.
    """
    if not hasattr(model.call, "_keras_mp_widened"):
        model.call = _widened(model.call)


def _widened(call):
    @functools.wraps(call)
    def in_float32(*args, **kwargs):
        return numerics.widen(call(*args, **kwargs))

    in_float32._keras_mp_widened = True
    return in_float32
