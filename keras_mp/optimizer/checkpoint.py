"""The variables of `LossScaleOptimizer` in a checkpoint, and those of others.

Keras's variables are under Keras's keys, ours under their names. In a file of weights
Keras's class leaves out the scale, because of the names beside it, and reads the inner
optimizer's variables, which are there a second time. A `tf.train.Checkpoint` it reads
in whole.
"""

import functools

from keras_mp import private
from keras_mp.wrapping import wrap_once

# Keras's class holds iteration, learning rate, step counter and scale, in this order.
_KERAS_OWN = 4


def save(optimizer, own, store):
    """Write the variables of ``optimizer`` to ``store``.

    Args:
        optimizer: A `LossScaleOptimizer`.
        own: Its variables, without those of its inner optimizer.
        store: Keras's mapping of keys to arrays.
    """
    for index, variable in enumerate(_of_keras(optimizer, own)):
        store[str(index)] = variable.numpy()
    for variable in own[_KERAS_OWN:]:
        store[variable.name] = variable.numpy()


def load(optimizer, own, store):
    """Assign what ``store`` holds to the variables of ``optimizer``.

    It may hold a checkpoint of `LossScaleOptimizer`, of Keras's class or of the bare
    inner optimizer.

    Returns:
        "all" that it holds; "inner", the bare optimizer's only; or None, nothing,
        because it has another number of variables than any of these.
    """
    indexed = sum(key.isdigit() for key in store.keys())
    if indexed == len(optimizer.inner_optimizer.variables):
        inner = optimizer.inner_optimizer
        inner.load_own_variables(store)
        # Keras will look for a part of its own in the file, find none, and warn.
        wrap_once(inner, "load_own_variables", "found", _unless_empty)
        return "inner"
    keras_variables = _of_keras(optimizer, own)
    if indexed != len(keras_variables):
        return None
    for index, variable in enumerate(keras_variables):
        variable.assign(store[str(index)])
    for variable in own[_KERAS_OWN:]:
        name = variable.name
        if name in store.keys() and store[name].shape == variable.shape:
            variable.assign(store[name])
    return "all"


def _of_keras(optimizer, own):
    """Return the variables that Keras's class would have, in its order."""
    return own[:_KERAS_OWN] + optimizer.inner_optimizer.variables


def _unless_empty(load):
    @functools.wraps(load)
    def load_unless_empty(store):
        if store.keys():
            load(store)

    return load_unless_empty


def holds_wrapped(path):
    """Return whether a `tf.train.Checkpoint` holds an optimizer around another one.

    Args:
        path: Prefix of the checkpoint's files.
    """
    names = private.optimizers.names_in_checkpoint(path)
    return any("inner_optimizer" in name.split("/") for name in names)
