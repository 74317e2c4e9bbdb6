"""The steps of ``fit``, ``evaluate`` and ``predict``: models hand them float32.

Losses that Keras compiles cast for themselves; metrics, functions and who reads
predictions do not. The last layer's products stay in low precision.
"""

import functools

from keras_mp import flow, private
from keras_mp.guards.wrapping import is_wrapped, wrap_once

_STEPS = ("train_step", "test_step", "predict_step")
_NARROW = "_keras_mp_narrow_steps"


def guard_steps(model):
    """Have models hand float32 to every step of ``model``, those of its own as well."""
    for name in _STEPS:
        wrap_once(model, name, name, functools.partial(_step, model, name))


def guard_steps_of_keras(model):
    """Have models hand float32 to those steps of ``model`` that are Keras's code."""
    for name in _STEPS:
        if private.is_code_of_keras(getattr(type(model), name)):
            wrap_once(model, name, name, functools.partial(_step, model, name))


def are_guarded(model):
    """Return whether the steps of ``model`` get float32."""
    guarded = all(is_wrapped(model, name) for name in _STEPS)
    return guarded and not are_narrow(model)


def narrow(model):
    """Have models hand the steps of ``model`` the dtypes that Keras would from now on.

    For a step of the user's own that fails on float32. Returns whether that is new.
    """
    new = not vars(model).get(_NARROW, False)
    vars(model)[_NARROW] = True
    return new


def are_narrow(model):
    """Return whether the steps of ``model`` get the dtypes that Keras would give."""
    return vars(model).get(_NARROW, False)


def _step(model, name, step):
    @functools.wraps(step)
    def in_float32(*args, **kwargs):
        reader = None if are_narrow(model) else flow.STEP
        with flow.read_by(reader):
            outputs = step(*args, **kwargs)
        return flow.widened(outputs) if name == "predict_step" else outputs

    return in_float32
