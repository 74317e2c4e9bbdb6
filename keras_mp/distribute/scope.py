"""Which strategy a model, its optimizer and a step belong to."""

import contextlib

import keras

from keras_mp import private
from keras_mp.distribute.devices import has_strategy, meets, replicas, share_variables


def scope_of(model):
    """Return the scope of the strategy that ``model`` was created under, if any.

    What belongs to the model, such as an optimizer named by a string, has its
    variables on every replica only if it is created there.
    """
    strategy = private.trainer.strategy_of(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def check_scope(model, optimizer):
    """Refuse a model and an optimizer that were not created under one strategy.

    Args:
        model: A Keras model.
        optimizer: What it is to be compiled with; checked if it is an instance.

    Raises:
        ValueError: This code runs in the scope of another strategy than the model was
            created under; or a variable of the model or of the optimizer was created
            outside the model's strategy.
    """
    strategy = private.trainer.strategy_of(model)
    if has_strategy():
        _check_present_scope(model, strategy)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        what = f"optimizer '{optimizer.name}'"
        _check_variables(optimizer.variables, what, model, strategy)
    if strategy is not None:
        _check_variables(model.variables, f"model '{model.name}'", model, strategy)


def _check_present_scope(model, strategy):
    import tensorflow as tf

    present = tf.distribute.get_strategy()
    if strategy is present:
        return
    where = "outside it" if strategy is None else "under another strategy"
    raise ValueError(
        f"Model '{model.name}' was to be compiled in the scope of a "
        f"{type(present).__name__}, but it was created {where}, so that `fit` would "
        "not use it. Create the model inside `with strategy.scope():`; an existing one "
        "can be saved, and loaded there with `keras_mp.load_model`."
    )


def _check_variables(variables, owner, model, strategy):
    """Raise if any of ``variables`` lives under another strategy than ``strategy``."""
    for variable in variables:
        if not _belongs(variable, strategy):
            under = "no strategy" if strategy is None else type(strategy).__name__
            raise ValueError(
                f"Model '{model.name}' was to be compiled. It was created under "
                f"{under}, but variable '{variable.path}' of {owner} was not, so that "
                "replicas could not keep it equal. Create the layers, the model and "
                "the optimizer inside the same `with strategy.scope():`, or all of "
                "them outside; an optimizer given by name is created where it has to."
            )


def _belongs(variable, strategy):
    if strategy is None:
        return not hasattr(variable.value, "distribute_strategy")
    return strategy.extended.variable_created_in_scope(variable.value)


def check_apply(state, accumulates):
    """Refuse to apply gradients where that would fail, or do something else, later.

    Args:
        state: A variable of the optimizer, to know where it was created.
        accumulates: Whether each replica sums the gradients of several batches.

    Raises:
        ValueError: Called outside a replica's context; for an optimizer that was
            created outside the strategy's scope; for one that accumulates under a
            strategy whose replicas share one copy of each variable; or in a loop
            compiled with XLA for several devices.
    """
    if not has_strategy():
        return
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        raise ValueError(
            "LossScaleOptimizer.apply() must be called in a replica context. "
            "Call it inside the function given to `strategy.run(...)`."
        )
    strategy = tf.distribute.get_strategy()
    if not strategy.extended.variable_created_in_scope(state):
        raise ValueError(
            "LossScaleOptimizer.apply() was called under a tf.distribute strategy "
            "that the optimizer was not created under, so that its replicas have no "
            "variables of their own. Create the optimizer, and the model, inside "
            "`with strategy.scope():`."
        )
    if accumulates and share_variables(state):
        raise ValueError(
            "LossScaleOptimizer cannot accumulate gradients under a "
            f"{type(strategy).__name__}, whose replicas share one copy of each "
            "variable: each needs a sum of its own. Use MirroredStrategy, or leave "
            "gradient_accumulation_steps out."
        )
    _check_compiler()


def _check_compiler():
    """Refuse a loop that TensorFlow would fail to compile later, without a remedy."""
    if meets() and replicas() > 1 and private.tracing.in_xla():
        raise ValueError(
            "LossScaleOptimizer.apply() was called in a tf.function with "
            f"jit_compile=True, on {replicas()} replicas. XLA compiles for one device, "
            "and a step meets all of them. Leave jit_compile out of the tf.function "
            "around or inside `strategy.run(...)`, or train on one device."
        )
