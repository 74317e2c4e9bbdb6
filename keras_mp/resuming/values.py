"""All that training changes in a model, as plain arrays, and back."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_mp import distribute, private

_GLOBAL = "global_seed"
_SEEDS = ("seeds", _GLOBAL)

#: The values of a variable by its key: one for each replica, or one that all share.
Values = dict[str, list[np.ndarray]]


def variables_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Return each variable that a step of ``model`` may change, by a key.

    Weights, the states of layers, metrics and random generators, Keras's global random
    generator, and the variables of its optimizers. The keys are the same in another
    process that has made the model in the same way.

    Args:
        model: A built Keras model.
    """
    groups: dict[str, Iterable[keras.Variable]] = {
        "seeds": private.draws.seeds_of(model),
        _GLOBAL: private.draws.global_seed(),
        "model": model.variables,
        "metrics": model.metrics_variables,
    }
    groups |= {
        name: optimizer.variables for name, optimizer in _optimizers(model).items()
    }
    named = {
        f"{group}/{index}": variable
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }
    return _each_once(named)


def read(variables: Mapping[str, keras.Variable]) -> Values:
    """Return the values of variables. Synchronises with the device."""
    return {key: distribute.read_copies(each) for key, each in variables.items()}


def left_out_of_files(model: keras.Model) -> Values:
    """Return what Keras's files of a model leave out. Synchronises with the device.

    The states of random generators, and values that differ between replicas, of which
    Keras saves one: statistics of BatchNormalization, sums of a window of accumulation.
    """
    left_out = {
        key: variable
        for key, variable in variables_of(model).items()
        if _group(key) in _SEEDS or distribute.number_of_copies(variable) > 1
    }
    return {
        key: copies
        for key, copies in read(left_out).items()
        if _group(key) in _SEEDS or len(copies) > 1
    }


def check_same_model(model: keras.Model, values: Values) -> None:
    """Raise ValueError unless values are those of a model that was made as ``model``.

    Metrics and Keras's global generator may come later.
    """
    here, there = (
        {key for key in keys if not _may_come_later(_group(key))}
        for keys in (variables_of(model), values)
    )
    if here != there:
        raise ValueError(
            f"it has {_numbers(here)}, and the values are of {_numbers(there)}"
        )


def assign(model: keras.Model, values: Values) -> None:
    """Give the variables of ``model`` their values; none, if one does not fit.

    Args:
        model: A built Keras model.
        values: As of `read`, or some of them. Those for which the model has no
            variable are passed over.

    Raises:
        ValueError: A value has another shape or dtype than its variable, or differs
            between replicas of which there is another number here.
    """
    if any(_group(key) == _GLOBAL for key in values):
        private.draws.make_global_seed()
    variables = variables_of(model)
    known = [key for key in values if key in variables]
    for key in known:
        _check(variables[key], values[key])
    for key in known:
        distribute.assign_copies(variables[key], values[key])


def _group(key: str) -> str:
    return key.split("/")[0]


def that_come_later(values: Values) -> Values:
    """Return those of ``values`` whose variables may be made, or reset, in ``fit``."""
    return {key: each for key, each in values.items() if _may_come_later(_group(key))}


def _may_come_later(group: str) -> bool:
    return group in ("metrics", _GLOBAL)


def _numbers(keys: Iterable[str]) -> str:
    """Return how many variables there are, by group, in words."""
    counts = collections.Counter(map(_group, keys))
    return ", ".join(f"{counts[group]} of '{group}'" for group in sorted(counts))


def _optimizers(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Return the optimizers of ``model`` by the first attribute that holds each."""
    found: dict[str, Any] = {"optimizer": getattr(model, "optimizer", None)}
    found |= vars(model)
    return {
        name: each
        for name, each in found.items()
        if isinstance(each, keras.optimizers.Optimizer)
    }


def _each_once(named: dict[str, keras.Variable]) -> dict[str, keras.Variable]:
    first = {}
    for key, variable in named.items():
        first.setdefault(id(variable), (key, variable))
    return dict(first.values())


def _check(variable: keras.Variable, copies: list[np.ndarray]) -> None:
    shape, dtype = tuple(variable.shape), private.variables.stored_dtype(variable)
    for copy in copies:
        if copy.shape != shape or copy.dtype.name != dtype:
            raise ValueError(
                f"variable '{variable.path}' of shape {shape} and dtype {dtype} got a "
                f"value of shape {copy.shape} and dtype {copy.dtype.name}"
            )
    here = distribute.number_of_copies(variable)
    if len(copies) not in (1, here):
        raise ValueError(
            f"variable '{variable.path}' has a value for each of {len(copies)} "
            f"replicas, and here it has {here}"
        )
