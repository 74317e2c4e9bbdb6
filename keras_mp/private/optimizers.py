"""What Keras keeps private of an optimizer: its counter, its slots, its update."""

import contextlib
import functools

import keras

from keras_mp.private import attributes


def step_counter(optimizer):
    """Return the variable that counts the gradients ``optimizer`` was given.

    The public ``iterations`` counts updates, of which accumulation makes fewer.
    """
    return optimizer._iterations


def learning_rate_schedule(optimizer):
    """Return the schedule that ``optimizer`` was given, or None.

    The public ``learning_rate`` is its present value.
    """
    schedule = optimizer._learning_rate
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    return schedule if is_schedule else None


@contextlib.contextmanager
def schedules_moved_on(optimizer, steps, moved_on=True):
    """Call the schedules of ``optimizer`` and its parts with a larger number of steps.

    Keras's public ``learning_rate`` is what is used in an update, and calls a schedule
    with the optimizer's own count.

    Args:
        optimizer: A Keras optimizer.
        steps: ``steps()`` returns how many more, a scalar int tensor; it is called
            where the schedule is, on each replica.
        moved_on: False to change nothing.
    """
    parts = updating_parts(optimizer) if moved_on else []
    pairs = [(part, learning_rate_schedule(part)) for part in parts]
    with attributes.attributes_for_now(
        (part, {"_learning_rate": _MovedOn(schedule, steps)})
        for part, schedule in pairs
        if schedule is not None
    ):
        yield


class _MovedOn(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is called with more steps than were made."""

    def __init__(self, schedule, steps):
        self._schedule, self._steps = schedule, steps

    def __call__(self, step):
        step = keras.ops.convert_to_tensor(step)
        return self._schedule(step + keras.ops.cast(self._steps(), step.dtype))


def names_in_checkpoint(path):
    """Return the names of the variables in the `tf.train.Checkpoint` at ``path``.

    An object that is restored is asked for its parts one by one, and not told what else
    the checkpoint has; only TensorFlow's hook for adapters gets to know the path.
    """
    import tensorflow as tf

    return [name for name, _ in tf.train.list_variables(path)]


def accumulators(optimizer, variables):
    """Return the variables in which ``optimizer`` sums the gradients of ``variables``.

    Raises:
        ValueError: ``optimizer`` was built before it was told to accumulate.
    """
    if not hasattr(optimizer, "_accumulated_gradients"):
        raise ValueError(
            f"Optimizer '{optimizer.name}' was built without accumulators, and "
            f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps} was "
            "set afterwards. Pass it to the optimizer's constructor."
        )
    places = places_of(optimizer, variables)
    return [optimizer._accumulated_gradients[place] for place in places]


def variables_of(optimizer):
    """Return the variables that ``optimizer`` was built with, as a list."""
    return list(optimizer._trainable_variables)


def places_of(optimizer, variables):
    """Return where each of ``variables`` is among those of `variables_of`."""
    return [optimizer._get_variable_index(variable) for variable in variables]


def updating_parts(optimizer):
    """Return the optimizers that update variables in the name of ``optimizer``.

    Itself, or the parts of a `keras.optimizers.MultiOptimizer`, whose list of them is
    not documented.
    """
    return list(getattr(optimizer, "optimizers", ())) or [optimizer]


def updates_as(optimizer, cls):
    """Return whether ``optimizer`` updates a variable with the very code of ``cls``."""
    names = ("update_step", "assign", "assign_add", "assign_sub")
    return not any(name in vars(optimizer) for name in names) and all(
        getattr(type(optimizer), name) is getattr(cls, name) for name in names
    )


@contextlib.contextmanager
def updating_by(optimizer, update, update_one):
    """Have ``optimizer.apply`` change variables by ``update`` and ``update_one``.

    Keras's public ``update_step`` changes one variable at a time, and under a strategy
    in a context of its own; ``_backend_update_step`` gets all of them, in the replica.

    Args:
        optimizer: A Keras optimizer without parts.
        update: ``update(keras_update, gradients, variables, learning_rate)`` with the
            backend's variables; ``keras_update`` takes the last three and does what
            Keras would.
        update_one: ``update_one(update_step, gradient, variable, learning_rate)``, used
            by ``keras_update``.
    """
    keras_update, update_step = optimizer._backend_update_step, optimizer.update_step

    def update_all(gradients, variables, learning_rate):
        variables = [getattr(variable, "value", variable) for variable in variables]
        update(keras_update, gradients, variables, learning_rate)

    replaced = {
        "_backend_update_step": update_all,
        "update_step": functools.partial(update_one, update_step),
    }
    with attributes.attributes_for_now([(optimizer, replaced)]):
        yield


def slots(optimizer, variable, names):
    """Return the optimizer's variables that belong to ``variable``.

    Args:
        optimizer: A built Keras optimizer.
        variable: A variable, Keras's or the backend's.
        names: Names of the attributes that list such variables, one an item.

    Returns:
        A list of the backend's variables. Keras names none of them in public.
    """
    index = optimizer._get_variable_index(variable)
    return [getattr(optimizer, name)[index].value for name in names]


@contextlib.contextmanager
def update_only(optimizer):
    """Have ``optimizer.apply`` take gradients as final: all summed, all accumulated.

    Keras has no public switch for it. Its all-reduce would be the second one, and its
    accumulation and its overwriting by averages meet all replicas inside a ``cond``,
    which crashes under a strategy. Averages are the same on every replica, so that
    each can assign its own.

    Raises:
        ValueError: A part of a `keras.optimizers.MultiOptimizer` accumulates.
    """
    steps = optimizer.gradient_accumulation_steps
    parts = [optimizer, *getattr(optimizer, "optimizers", ())]
    for part in parts[1:]:
        if part.gradient_accumulation_steps:
            raise ValueError(
                f"Optimizer '{part.name}', a part of '{optimizer.name}', has "
                f"gradient_accumulation_steps={part.gradient_accumulation_steps}. Set "
                f"it on '{optimizer.name}' itself before it is built, for all parts."
            )
    optimizer.gradient_accumulation_steps = None
    try:
        with attributes.attributes_for_now(map(_final, parts)):
            yield
    finally:
        optimizer.gradient_accumulation_steps = steps


def _final(part):
    """Return what to replace in ``part`` for gradients to be final."""
    overwrite = functools.partial(_overwrite_by_averages, part)
    return part, {
        "_all_reduce_sum_gradients": lambda grads_and_vars: grads_and_vars,
        "_overwrite_model_variables_with_average_value": overwrite,
    }


def _overwrite_by_averages(optimizer, variables):
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(variables, averages, strict=True):
        if average is not None:
            variable.assign(average)
