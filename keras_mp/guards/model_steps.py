"""The steps of ``fit``, ``evaluate`` and ``predict``: models hand them float32.

Losses that Keras compiles cast for themselves; metrics, functions and who reads
predictions do not. The last layer's products stay in low precision.
"""

import functools
import inspect
import itertools
import warnings

from keras_mp import flow, private
from keras_mp.guards import own_islands
from keras_mp.guards.wrapping import is_wrapped, wrap_once

_STEPS = ("train_step", "test_step", "predict_step")
_NARROW = "_keras_mp_narrow_steps"


def guard_steps(model, of_keras_only=False):
    """Have models hand float32 to the steps of ``model``.

    Args:
        model: A Keras model.
        of_keras_only: Whether to leave out steps that are code of the user's own.
    """
    for name in _STEPS:
        if private.is_code_of_keras(getattr(type(model), name)) or not of_keras_only:
            wrap_once(model, name, name, functools.partial(_step, model, name))


def are_guarded(model):
    """Return whether the steps of ``model`` get float32."""
    guarded = all(is_wrapped(model, name) for name in _STEPS)
    return guarded and not are_narrow(model)


def are_narrow(model):
    """Return whether the steps of ``model`` get the dtypes that Keras would give."""
    return vars(model).get(_NARROW, False)


def fall_back(model):
    """Have steps of ``model`` that fail on float32 get what Keras would give them.

    A step of the user's own may multiply what a model returns with a float16 tensor.
    """
    private.run_steps_with(model, functools.partial(_falling_back, model), "narrow")


def _falling_back(model, make):
    """Return what ``make()`` does, to run steps on an iterator, tried in two ways."""
    function = make()

    def execute(iterator):
        nonlocal function
        again = _again(model, iterator)
        try:
            return function(again())
        except Exception as error:
            layer = private.without_kernel(model, error)
            if layer is not None and not own_islands.reason(layer):
                own_islands.become_island(layer, error)
                function = make()
                return execute(again())
            if are_narrow(model) or not private.is_dtype_error(error):
                raise
            # A function that failed as it was traced is of no use.
            function, vars(model)[_NARROW] = make(), True
            try:
                logs = function(again())
            except Exception:
                vars(model)[_NARROW] = False
                raise
            message = _MESSAGE.format(model.name, private.summary_of(error))
            warnings.warn(message, stacklevel=2)
            return logs

    return execute


def _again(model, iterator):
    """Return a function that gives what to iterate over, the same each time.

    A graph fails before it draws a batch. A generator, or a step that is not traced,
    draws one first.
    """
    if not (inspect.isgenerator(iterator) or model.run_eagerly):
        return lambda: iterator
    batches = list(itertools.islice(iterator, model.steps_per_execution))
    if not batches:
        raise StopIteration
    return lambda: iter(batches)


_MESSAGE = (
    "A step of model '{}' fails on the float32 that keras_mp has models return to it: "
    "{}. Models return 16 bits from now on, as with Keras alone, so that losses and "
    "metrics which the step computes itself are rounded. To avoid that, cast what it "
    "mixes to the dtype of the model's output, not to `compute_dtype`."
)


def _step(model, name, step):
    @functools.wraps(step)
    def in_float32(*args, **kwargs):
        reader = None if are_narrow(model) else flow.STEP
        with flow.read_by(reader):
            outputs = step(*args, **kwargs)
        return flow.widened(outputs) if name == "predict_step" else outputs

    return in_float32
