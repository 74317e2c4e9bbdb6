"""A replica's share of a batch that has no row.

A batch of fewer rows than replicas, such as the last of an epoch, leaves some replicas
without any. Their gradients are 0 and their metrics unchanged, with Keras too. But
layers that divide by the number of rows, such as BatchNorm, get NaN: in their
statistics on that replica, and in their gradients, which the sum over the replicas
spreads to all. So that such a share leaves no trace, its NaN gradients count as 0, and
what the replica wrote into variables of its own is put back.
"""

import functools
import threading

import keras
from keras import ops

from keras_mp import private, stacks
from keras_mp.distribute.devices import assign_all, no_value
from keras_mp.wrapping import wrap_once

# Whether the share of the replica that runs in this thread has no row.
_running = threading.local()


def without_trace(model, step):
    """Return ``step``, a train or test step of ``model``, safe for a share of no rows.

    Statically known shares that have rows cost nothing.
    """
    import tensorflow as tf

    @functools.wraps(step)
    def safe_step(data):
        rows = rows_of(data)
        if tf.get_static_value(rows):
            return step(data)
        return _step_on_maybe_empty(model, step, data, tf.equal(rows, 0))

    return safe_step


def ignore_nan_of_no_rows(optimizer):
    """Have ``optimizer.apply`` take NaN gradients of a share of no rows for 0."""
    wrap_once(optimizer, "apply", "empty shares", _without_nan_of_no_rows)


def _without_nan_of_no_rows(apply):
    @functools.wraps(apply)
    def apply_without_nan(grads, *arguments, **options):
        empty = getattr(_running, "empty", None)
        if empty is not None:
            grads = _without_nan(empty, list(grads))
        return apply(grads, *arguments, **options)

    return apply_without_nan


def unless_empty(event):
    """Return ``event``, a bool tensor, or False if it is of a share of no rows."""
    empty = getattr(_running, "empty", None)
    return event if empty is None else ops.logical_and(event, ops.logical_not(empty))


def rows_of(data):
    """Return the number of rows of ``data``, a nested structure of tensors."""
    import tensorflow as tf

    leaves = keras.tree.flatten(data)
    return tf.shape(next(leaf for leaf in leaves if leaf is not None))[0]


def _step_on_maybe_empty(model, step, data, empty):
    variables = [
        variable
        for variable in model.non_trainable_variables + model.metrics_variables
        if _is_own(variable)
    ]
    values = private.variables.values_of(variables)
    _running.empty = empty
    try:
        logs = step(data)
    finally:
        del _running.empty
    ops.cond(empty, lambda: assign_all(variables, values), no_value)
    return keras.tree.map_structure(functools.partial(_loggable, empty), logs)


def _loggable(empty, value):
    """Return ``value``, or 0 if it is the NaN of a share of no rows.

    Keras logs the mean of the replicas, and its metrics are 0 before their first row.
    """
    import tensorflow as tf

    value = tf.convert_to_tensor(value)
    if not value.dtype.is_floating:
        return value
    ruined = tf.logical_and(empty, tf.logical_not(tf.math.is_finite(value)))
    return tf.where(ruined, tf.zeros_like(value), value)


def _is_own(variable):
    """Return whether each replica assigns a value of its own to ``variable``."""
    return variable.aggregation == "none" or variable.synchronization == "on_read"


def _without_nan(empty, gradients):
    """Return ``gradients``, with 0 for what is not finite if ``empty`` is true."""
    import tensorflow as tf

    def cleaned(gradient):
        return tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))

    def clean(gradients):
        return tf.cond(
            empty,
            lambda: list(map(cleaned, gradients)),
            lambda: list(map(tf.identity, gradients)),
        )

    # A sparse gradient of no rows holds nothing.
    dense = [gradient for gradient in gradients if isinstance(gradient, tf.Tensor)]
    sources = list(map(private.tracing.before_cast, dense))
    results = iter(stacks.map_stacked(clean, sources) if dense else ())
    return [
        ops.cast(next(results), gradient.dtype)
        if isinstance(gradient, tf.Tensor)
        else gradient
        for gradient in gradients
    ]
