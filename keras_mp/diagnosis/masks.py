"""Numbers in code that are too large for a dtype: attention is often masked by one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from keras_mp import private


def number_in_code(layer: Any, largest: float) -> float | None:
    """Return a number above ``largest`` that the code of a layer holds, or None.

    In size, not in sign. Of layers of Keras's own nothing is known.
    """
    if private.layers.is_code_of_keras(type(layer).call):
        return None
    found = (n for n in _constants(layer) if largest < abs(n) <= sys.float_info.max)
    return next(found, None)


def _constants(layer: Any) -> Iterator[float]:
    """Yield numbers in the code and the attributes of a layer and its classes.

    And those that the code has by name from the functions and the module around it. Of
    whole numbers only those below 0: others are sizes.
    """
    classes = [
        each
        for each in type(layer).__mro__
        if each is not object and not private.layers.is_code_of_keras(each)
    ]
    values = [value for each in classes for value in vars(each).values()]
    functions = [value for value in values if inspect.isfunction(value)]
    codes = [function.__code__ for function in functions]
    for code in codes:
        codes += [each for each in code.co_consts if inspect.iscode(each)]
        values += code.co_consts
    for function in functions:
        around = inspect.getclosurevars(function)
        values += [*around.nonlocals.values(), *around.globals.values()]
    values += vars(layer).values()
    for value in values:
        if isinstance(value, float) or (isinstance(value, int) and value < 0):
            yield value
