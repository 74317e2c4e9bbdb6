"""Running means of what is finite.

A metric adds up numbers of all batches, so that an inf or NaN of one batch would stay
until the epoch ends. Here a metric that is not finite after a step gets back the values
that it had before it. If it had counted nothing before, it becomes NaN and starts from
0 in the next step: so an epoch in which no step was finite shows NaN.

All numbers are checked together, in few operations. Each metric is checked by itself in
a branch that is taken only if any number is not finite.
"""

from typing import Any

import keras
from keras import ops

from keras_mp import dtypes, numerics, private


def begin(model: keras.Model) -> dict[int, Any]:
    """Return the values of metrics before a step of ``model``; NaN ones start from 0.

    Returns:
        The value of each variable, as a tensor, by the variable's id.
    """
    metrics = _counting(model)
    variables = _variables(metrics)
    if not variables:
        return {}
    values = private.variables.values_of(variables)
    values = private.kernels.cond(
        numerics.all_finite(_floats(values)),
        lambda: values,
        lambda: _started(metrics, _by_id(variables, values)),
    )
    return _by_id(variables, values)


def leave_out(model: keras.Model, before: dict[int, Any], logs: Any) -> tuple[Any, Any]:
    """Put back metrics that are no longer finite, and show that in the logs.

    Args:
        model: A Keras model after a step.
        before: The result of `begin` before the step; without metrics made in the step.
        logs: The result of the step. If it is a dict, a top-level item that is not
            finite and has the name of a metric which was put back is replaced by the
            result of that metric.

    Returns:
        The logs, and a scalar bool tensor: whether a loss of this step was not finite.
        Losses are numbers whose name ends with ``loss``, on the top level of the logs
        or among the metrics that were not given to ``compile``.
    """
    metrics = _counting(model)
    variables = _variables(metrics)
    values = private.variables.values_of(variables)
    shown = _numbers_on_top(logs)
    losses = [value for name, value in shown.items() if _is_loss(name)]

    def without_what_is_not_finite():
        left_out = _put_back(metrics, before, _by_id(variables, values))
        in_logs = ops.logical_not(numerics.every_finite(losses))
        nonfinite = _any([in_logs, *_left_out_losses(model, left_out)])
        return _with_results(model, left_out, shown), nonfinite

    shown, nonfinite = private.kernels.cond(
        numerics.all_finite([*_floats(values), *losses]),
        lambda: (shown, ops.convert_to_tensor(False)),
        without_what_is_not_finite,
    )
    return ({**logs, **shown} if shown else logs), nonfinite


def _counting(model):
    """Return the metrics of ``model`` one by one, also those given to ``compile``."""
    return [
        part for _, parts in private.trainer.reporting_metrics(model) for part in parts
    ]


def _started(metrics, values):
    """Set metrics that are NaN throughout to 0, and return the values of all."""
    for metric in metrics:
        own = _variables([metric])
        floats = _floats([values[id(variable)] for variable in own])
        if floats:
            hidden = _all([ops.all(ops.isnan(value)) for value in floats])
            for variable in own:
                value = values[id(variable)]
                value = ops.where(hidden, ops.zeros_like(value), value)
                variable.assign(value)
                values[id(variable)] = value
    return list(values.values())


def _put_back(metrics, before, values):
    """Put each metric back that became not finite; return whether it did, by its id."""
    return {id(metric): _put_one_back(metric, before, values) for metric in metrics}


def _put_one_back(metric, before, values):
    variables = _variables([metric])
    new = [values[id(each)] for each in variables]
    old = [before.get(id(each), ops.zeros_like(values[id(each)])) for each in variables]
    pairs = list(zip(old, new, strict=True))
    is_out = _any([_is_ruined(*pair) for pair in pairs if dtypes.is_float(pair[0])])
    had_nothing = _all([ops.all(ops.equal(each, ops.zeros_like(each))) for each in old])
    for variable, (value, ruined) in zip(variables, pairs, strict=True):
        if dtypes.is_float(value):
            value = ops.where(had_nothing, ops.full_like(value, float("nan")), value)
        variable.assign(ops.where(is_out, value, ruined))
    return is_out


def _is_ruined(old, new):
    """Return whether any number in ``new`` is not finite that is finite in ``old``."""
    lost = ops.logical_and(ops.isfinite(old), ops.logical_not(ops.isfinite(new)))
    return ops.any(lost)


def _left_out_losses(model, left_out):
    """Return for each loss that ``model`` tracks whether it was put back."""
    return [
        left_out[id(metric)]
        for metric, parts in private.trainer.reporting_metrics(model)
        if metric in parts and _is_loss(metric.name)
    ]


def _with_results(model, left_out, shown):
    """Return the logs ``shown``, with what the metrics that were put back give now."""
    shown = dict(shown)
    for metric, parts in private.trainer.reporting_metrics(model):
        if not getattr(metric, "built", True):
            continue  # a train_step that leaves out the metrics of `compile`
        is_out = _any([left_out[id(part)] for part in parts])
        results = metric.result()
        if not isinstance(results, dict):
            results = {metric.name: results}
        for name, result in results.items():
            if name in shown and shown[name].shape == ops.shape(result):
                old = shown[name]
                is_its = ops.logical_and(is_out, ops.logical_not(ops.isfinite(old)))
                shown[name] = ops.where(is_its, ops.cast(result, old.dtype), old)
    return shown


def _numbers_on_top(logs):
    """Return the floats in ``logs`` as tensors, by their names; of a dict only.

    Keras 3.12 turns them into Python numbers in an eager step.
    """
    if not isinstance(logs, dict):
        return {}
    return {
        name: ops.convert_to_tensor(value)
        for name, value in logs.items()
        if dtypes.is_float(value) or isinstance(value, float)
    }


def _is_loss(name):
    return str(name).endswith("loss")


def _variables(metrics):
    """Return the variables of ``metrics`` that hold numbers, each once."""
    variables = [variable for metric in metrics for variable in metric.variables]
    numbers = [each for each in variables if each.dtype != "string"]
    return list({id(variable): variable for variable in numbers}.values())


def _by_id(variables, values):
    return {
        id(variable): value for variable, value in zip(variables, values, strict=True)
    }


def _floats(values):
    return [value for value in values if keras.backend.is_float_dtype(value.dtype)]


def _all(conditions):
    return ops.all(ops.stack([ops.convert_to_tensor(True), *conditions]))


def _any(conditions):
    return ops.any(ops.stack([ops.convert_to_tensor(False), *conditions]))
