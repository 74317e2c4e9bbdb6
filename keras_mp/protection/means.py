"""Running means of what is finite.

A metric adds up what the batches give, so that the inf or NaN of one would stay until
the epoch ends. Here a metric that a step leaves not finite gets back what it had. If
that was nothing, it becomes NaN: so an epoch reads whose every step was like that. In
the next step it starts from 0.

All numbers are looked at together, in few operations, and each metric by itself in a
branch that is taken only if any number is not finite.
"""

import keras
from keras import ops

from keras_mp import distribute, numerics, private


def begin(metrics):
    """Return what ``metrics`` hold before a step, those that are NaN started from 0.

    Returns:
        The value of each variable, as a tensor, by the variable's id.
    """
    variables = _variables(metrics)
    if not variables:
        return {}
    values = distribute.values_of(variables)
    values = private.cond(
        numerics.all_finite(_floats(values)),
        lambda: values,
        lambda: _started(metrics, _by_id(variables, values)),
    )
    return _by_id(variables, values)


def leave_out(metrics, before, logs):
    """Put metrics back that are finite no more, and show so in the logs of their step.

    Args:
        metrics: List of Keras metrics after a step.
        before: What `begin` returned before it; less of metrics that it has made.
        logs: What the step returned. Of a dict, the items on top that have the name of
            a metric are taken for what it gave.

    Returns:
        The logs, and a scalar bool tensor: a loss of this step was not finite. That is
        what is called ``loss``, or by a name that ends so, on top of the logs or among
        the metrics.
    """
    variables = _variables(metrics)
    values = distribute.values_of(variables)
    shown = _numbers_on_top(logs)
    losses = [value for name, value in shown.items() if _is_loss(name)]

    def mended():
        left_out = _put_back(metrics, before, _by_id(variables, values))
        bad = [ops.logical_not(numerics.every_finite(losses))]
        bad += [
            is_out
            for metric, is_out in zip(metrics, left_out, strict=True)
            if _is_loss(metric.name)
        ]
        return _with_results(metrics, left_out, shown), ops.any(ops.stack(bad))

    shown, nonfinite = private.cond(
        numerics.all_finite([*_floats(values), *losses]),
        lambda: (shown, ops.convert_to_tensor(False)),
        mended,
    )
    return ({**logs, **shown} if shown else logs), nonfinite


def _started(metrics, values):
    """Set metrics that are NaN throughout to 0, and return the values of all."""
    for metric in metrics:
        own = _variables([metric])
        floats = _floats([values[id(variable)] for variable in own])
        if floats:
            hidden = _all(ops.all(ops.isnan(value)) for value in floats)
            for variable in own:
                value = values[id(variable)]
                value = ops.where(hidden, ops.zeros_like(value), value)
                variable.assign(value)
                values[id(variable)] = value
    return list(values.values())


def _put_back(metrics, before, values):
    """Put back each metric that became not finite; return for each whether it did."""
    return [_put_one_back(_variables([metric]), before, values) for metric in metrics]


def _put_one_back(variables, before, values):
    pairs = [
        (before.get(id(variable), ops.zeros_like(values[id(variable)])), variable)
        for variable in variables
    ]
    is_out = ops.logical_not(
        _all(
            ops.all(ops.isfinite(values[id(variable)]) | ~ops.isfinite(old))
            for old, variable in pairs
            if numerics.is_float(old)
        )
    )
    is_empty = _all(ops.all(ops.equal(old, ops.zeros_like(old))) for old, _ in pairs)
    for old, variable in pairs:
        if numerics.is_float(old):
            old = ops.where(is_empty, ops.full_like(old, float("nan")), old)
        variable.assign(ops.where(is_out, old, values[id(variable)]))
    return is_out


def _with_results(metrics, left_out, shown):
    """Return the logs ``shown``, with what the metrics that were put back give now."""
    shown = dict(shown)
    for metric, is_out in zip(metrics, left_out, strict=True):
        results = metric.result()
        if not isinstance(results, dict):
            results = {metric.name: results}
        for name, result in results.items():
            if name in shown and shown[name].shape == ops.shape(result):
                old = shown[name]
                shown[name] = ops.where(is_out, ops.cast(result, old.dtype), old)
    return shown


def _numbers_on_top(logs):
    """Return the float tensors in ``logs``, by their names; of a dict only."""
    if not isinstance(logs, dict):
        return {}
    return {
        name: ops.convert_to_tensor(value)
        for name, value in logs.items()
        if numerics.is_float(value)
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
