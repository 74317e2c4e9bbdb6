"""Losses that are computed in 16 bits."""

import dis
import inspect
from collections.abc import Iterator

import keras

from keras_mp import dtypes, guards, private
from keras_mp.lint.finding import Finding

_LOSS_FUNCTIONS = {
    function
    for name, function in vars(keras.losses).items()
    if inspect.isfunction(function) and name not in ("deserialize", "get", "serialize")
}


def find(model: keras.Model, is_head_low: bool) -> Iterator[Finding]:
    """Yield findings on losses of ``model`` that are computed in 16 bits."""
    for loss in filter(None, keras.tree.flatten(getattr(model, "loss", None))):
        dtype = getattr(loss, "dtype", keras.config.floatx())
        if dtype in dtypes.LOW_PRECISION:
            name = getattr(loss, "name", None) or getattr(loss, "__name__", loss)
            yield Finding(
                "warning",
                "functional-loss",
                model.name,
                f"loss '{name}' is computed in {dtype}",
                "give it dtype='float32', and leave keras.config.floatx() at float32",
            )
    if is_head_low:
        for method in ("compute_loss", "test_step", "train_step"):
            for function in _loss_functions_in(type(model), method):
                yield Finding(
                    "warning",
                    "functional-loss",
                    model.name,
                    f"its {method} calls {function.__name__}, which computes in the "
                    "16 bits that the model returns",
                    _advice(model),
                )


def _advice(model):
    """Return what helps where a step computes a loss in 16 bits."""
    if guards.do_steps_get_16_bits(model):
        return (
            "its step fails on float32: cast what it mixes to the dtype of the "
            "model's output, or cast the output to float32 for the loss"
        )
    return (
        "keras_mp.compile returns float32, also of models that a step calls by "
        "itself, and the classes of keras.losses cast to it"
    )


def _loss_functions_in(cls, name):
    """Yield the functions of `keras.losses` that a method calls, each once.

    Methods of the user's own that it calls are looked through as well.
    """
    found, seen, waiting = [], set(), [name]
    while waiting:
        method = inspect.unwrap(getattr(cls, waiting.pop(), None) or len)
        if not inspect.isfunction(method) or method in seen:
            continue
        seen.add(method)
        for value, attribute in _names_in(method):
            if inspect.isfunction(value) and value in _LOSS_FUNCTIONS:
                found += [value] if value not in found else []
            own = getattr(cls, attribute or "", None)
            if inspect.isfunction(own) and not private.layers.is_code_of_keras(own):
                waiting.append(attribute)
    yield from found


def _names_in(method):
    """Yield for each name that ``method`` loads its value, if global, and itself."""
    value = None
    for step in dis.get_instructions(method):
        if step.opname == "LOAD_GLOBAL":
            value = method.__globals__.get(step.argval)
            yield value, None
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            value = (
                getattr(value, step.argval, None) if inspect.ismodule(value) else None
            )
            yield value, step.argval
        else:
            value = None
