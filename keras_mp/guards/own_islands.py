"""Float32 islands for code of the user's own that fails in 16 bits.

A ``call`` that multiplies its float16 input with a float32 constant or random number
raises an error with Keras alone. Then the code of that layer, and of no layer around
it, is run again in float32: its inputs, its variables and the outputs of layers inside
it are float32. Those layers themselves still compute in 16 bits.
"""

import functools
import re
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import dtypes, flow, private
from keras_mp.guards import assignments
from keras_mp.wrapping import wrap_once

_REASONS, _WORKS, _STRICT = (
    "_keras_mp_islands",
    "_keras_mp_works",
    "_keras_mp_strict",
)

# Code may do different things for each set of switches, such as `training`; this
# stands for all sets.
_ANY = None


def reason(layer: keras.layers.Layer) -> str | None:
    """Return why the code of ``layer`` computes in float32, or None if it does not.

    Code that fails in 16 bits in training may still predict in 16 bits.
    """
    return next(iter(_reasons(layer).values()), None)


def _reasons(layer):
    return vars(layer).get(_REASONS, {})


def set_strict(layer: keras.layers.Layer, strict: bool) -> None:
    """Set whether an error of ``layer`` about dtypes is raised."""
    vars(layer)[_STRICT] = strict


def call(
    layer: keras.layers.Layer, function: Callable, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Return ``function(*args, **kwargs)``, the ``call`` of a layer of the user's own.

    Args:
        layer: The layer.
        function: Its ``call`` as the user wrote it.
        args, kwargs: Its arguments.

    Raises:
        Exception: What ``function`` raises, if it is not about dtypes or is raised in
            float32 too.
    """
    low = dtypes.computes_low(layer)
    switches = _switches(args, kwargs)
    if low and private.layers.is_foreign(layer) and not reason(layer):
        become_island(layer, TypeError("a SavedModel has dtypes of its own"))
    if low and _reasons(layer).keys() & {switches, _ANY}:
        return _in_float32(layer, function, args, kwargs)
    works = switches in vars(layer).get(_WORKS, ())
    if not low or works or vars(layer).get(_STRICT):
        with flow.read_by(flow.CODE):
            return function(*args, **kwargs)
    return _first_call(layer, switches, function, args, kwargs)


def _first_call(layer, switches, function, args, kwargs):
    before = _state(layer)
    try:
        with flow.read_by(flow.CODE), assignments.watched(layer):
            outputs = function(*args, **kwargs)
    except Exception as error:
        if not private.errors.is_dtype_error(error):
            raise
        _restore(before)
        try:
            outputs = _in_float32(layer, function, args, kwargs)
        except Exception:
            raise error from None
        become_island(layer, error, switches)
        return outputs
    if layer.built:
        vars(layer).setdefault(_WORKS, set()).add(switches)
    return outputs


def _switches(args, kwargs):
    """Return the arguments that are switches: bools and strings."""
    named = [*enumerate(args), *kwargs.items()]
    return frozenset(each for each in named if isinstance(each[1], bool | str))


def _in_float32(layer, function, args, kwargs):
    hand_on_inside(layer)
    args, kwargs = flow.widened((args, kwargs))
    dtype = layer.compute_dtype
    with private.attributes.in_float32(layer), flow.read_by(flow.ISLAND):
        outputs = function(*args, **kwargs)
    return flow.rounded(outputs, dtype)


def hand_on_inside(layer: keras.layers.Layer) -> None:
    """Make layers inside ``layer`` return float32 to code that computes in float32."""
    for inner in private.layers.walk(layer)[1:]:
        wrap_once(inner, "call", "in island", _handing_on)


def _handing_on(inner_call):
    """Return the ``call`` of a layer inside an island, whose code gets float32."""

    @functools.wraps(inner_call)
    def handing_on(*args, **kwargs):
        outputs = inner_call(*args, **kwargs)
        return flow.widened(outputs) if flow.reader() == flow.ISLAND else outputs

    return handing_on


def _state(layer):
    """Return losses and variables, which a ``call`` may change before it fails."""
    losses = map(private.layers.own_losses, private.layers.walk(layer))
    losses = [(own, list(own)) for own in losses]
    variables = private.layers.state_of(layer)
    with private.variables.variables_as_stored():
        values = private.variables.values_of(variables)
    return losses, list(zip(variables, values, strict=True))


def _restore(state):
    losses, values = state
    for own, before in losses:
        own[:] = before
    # Keras 3.12 rounds what is assigned in a call.
    with private.variables.variables_as_stored():
        for variable, value in values:
            variable.assign(value)


def become_island(
    layer: keras.layers.Layer, error: Exception, switches: Any = _ANY
) -> None:
    """Make the code of ``layer``, which raised ``error``, compute in float32; warn."""
    known = reason(layer) is not None
    message = private.errors.message_of(error)
    operation = re.search(r"'(\w+)' Op|compute (\w+) as", message)
    where = _line(error)
    found = " ".join(
        [
            *([f"in operation {operation[1] or operation[2]}"] if operation else []),
            *([f"at {where}"] if where else []),
        ]
    )
    because = f"its code mixes dtypes {found}".strip()
    vars(layer).setdefault(_REASONS, {})[switches] = because
    if known:
        return
    warnings.warn(
        f"Layer '{layer.name}' ({type(layer).__name__}) failed in "
        f"{layer.compute_dtype} {found}: {private.errors.summary_of(error)}. Its code "
        "computes in float32 from now on, as a float32 island; layers inside it still "
        "compute in 16 bits. To have all of it in 16 bits, cast what it mixes to "
        "`self.compute_dtype`; to get the error, use keras_mp.Policy(..., "
        "strict=True).",
        stacklevel=2,
    )


def _line(error):
    """Return the line of the user's code in which ``error`` was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not private.errors.is_library(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None
