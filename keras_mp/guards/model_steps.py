"""The steps of ``fit``, ``evaluate`` and ``predict`` get float32 from models.

Losses given to ``compile`` cast their arguments; metrics, functions and readers of
predictions do not. The products of the last layer stay in low precision.
"""

import contextlib
import functools
import inspect
import itertools
import warnings

import keras

from keras_mp import flow, private
from keras_mp.guards import own_islands
from keras_mp.wrapping import is_wrapped, wrap_once

_MESSAGES = {
    flow.ISLAND: (
        "A step of model '{}' mixes dtypes: {}. All layers hand float32 to the code of "
        "its step from now on; inside they still compute in 16 bits. To avoid that, "
        "cast what it mixes to float32."
    ),
    None: (
        "A step of model '{}' fails on the float32 that keras_mp has models return to "
        "it: {}. Models return 16 bits from now on, as with Keras alone, so that "
        "losses and metrics which the step computes itself are rounded. To avoid that, "
        "cast what it mixes to the dtype of the model's output, not to `compute_dtype`."
    ),
}


_STEPS = ("train_step", "test_step", "predict_step")
_READER = "_keras_mp_reader_in_steps"
_MARK = "float32"


def guard_steps(model: keras.Model, of_keras_only: bool = False) -> None:
    """Make models return float32 to the steps of ``model``.

    Args:
        model: A Keras model.
        of_keras_only: Whether steps that are code of the user's own are left out.
    """
    for name in _STEPS:
        if (
            private.layers.is_code_of_keras(getattr(type(model), name))
            or not of_keras_only
        ):
            wrap_once(model, name, _MARK, functools.partial(_step, model, name))


def are_guarded(model: keras.Model) -> bool:
    """Return whether the steps of ``model`` get float32."""
    guarded = all(is_wrapped(model, name, _MARK) for name in _STEPS)
    return guarded and not get_16_bits(model)


def get_16_bits(model: keras.Model) -> bool:
    """Return whether the steps of ``model`` get the dtypes that Keras would give."""
    return _reader(model) is None


def called_in_step(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Return a context in which ``model`` is called as its ``train_step`` calls it."""
    guarded = is_wrapped(model, "train_step", _MARK)
    return flow.read_by(_reader(model)) if guarded else contextlib.nullcontext()


def _reader(model):
    return vars(model).get(_READER, flow.STEP)


def fall_back(model: keras.Model) -> None:
    """Make steps of ``model`` that fail with float32 from models try two other ways.

    A step of the user's own may multiply the output of a layer with a float32 tensor:
    then all layers return float32 to it. Or it may multiply the output of a model with
    a float16 tensor: then models return the dtype that Keras would.
    """
    private.trainer.run_steps_with(
        model, functools.partial(_falling_back, model), "fall back"
    )


def _falling_back(model, _, make):
    """Return the function that ``make()`` makes to run steps, tried in three ways."""
    function = make()

    def execute(iterator):
        nonlocal function
        again = _again(model, iterator)
        try:
            return function(again())
        except Exception as error:
            layer = private.errors.without_kernel(model, error)
            if layer is not None and not own_islands.reason(layer):
                own_islands.become_island(layer, error)
                function = make()
                return execute(again())
            if _reader(model) != flow.STEP or not private.errors.is_dtype_error(error):
                raise
            # A function that failed as it was traced is of no use.
            found = _in_another_way(model, make, again, error)
            function, logs = found  # pyright: ignore
            return logs

    return execute


def _in_another_way(model, make, again, error):
    """Return a function that runs steps, and the logs of the first; else raise."""
    own_islands.hand_on_inside(model)
    for reader, message in _MESSAGES.items():
        function, vars(model)[_READER] = make(), reader
        try:
            logs = function(again())
        except Exception as another:
            vars(model)[_READER] = flow.STEP
            if not private.errors.is_dtype_error(another) or reader is None:
                raise
        else:
            message = message.format(model.name, private.errors.summary_of(error))
            warnings.warn(message, stacklevel=3)
            return function, logs


def _again(model, iterator):
    """Return a function that returns an iterator over the same batches each time.

    A graph fails before it takes a batch. A generator, or a step that is not traced,
    takes one first.
    """
    if not (inspect.isgenerator(iterator) or model.run_eagerly):
        return lambda: iterator
    batches = list(itertools.islice(iterator, model.steps_per_execution))
    if not batches:
        raise StopIteration
    return lambda: iter(batches)


def _step(model, name, step):
    @functools.wraps(step)
    def in_float32(*args, **kwargs):
        with flow.read_by(_reader(model)):
            outputs = step(*args, **kwargs)
        return flow.widened(outputs) if name == "predict_step" else outputs

    return in_float32
