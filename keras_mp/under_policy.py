"""A compiled model under another policy, with what its optimizer knows."""

import keras

from keras_mp import conversion, dtypes, guarded, private
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.scaling import StaticLossScale


def put_under(model: keras.Model, policy: keras.DTypePolicy) -> None:
    """Put ``model`` under ``policy``, and its optimizer into what `compile` gives it.

    The inner optimizer stays the very same, with its moments. Of a model in pure
    float16 or bfloat16 it is another one, because its variables get the dtype of the
    weights. A `LossScaleOptimizer` keeps its counters, and its rule and scale too if
    they are of use still.

    Args:
        model: A Keras model, compiled or not.
        policy: A Keras dtype policy.

    Raises:
        ValueError: The model's variables would have to be rounded.
    """
    old = getattr(model, "optimizer", None)
    config = None if old is None else model.get_compile_config()
    before = _precisions(model)
    conversion.convert(model, policy)
    if config is not None and model.optimizer is None:
        model.compile_from_config(config)
        if model.optimizer is not None:
            old = _moved(old, model.optimizer)
    if getattr(model, "optimizer", None) is None:
        return
    needless = before - _precisions(model)
    new = _without_scale(model, old) if needless else old
    new = guarded.wrap_optimizer(model, new)
    _hand_on_counters(old, new)
    private.trainer.exchange_optimizer(model, model.optimizer, new)


def _precisions(model):
    """Return what a `LossScaleOptimizer` is for in ``model``."""
    purposes = {"scale": ("float16",), "guard": dtypes.LOW_PRECISION}
    return {name for name, low in purposes.items() if guarded.computes_in(model, low)}


def _moved(old, new):
    """Return ``new``, or what Keras has wrapped in it, with the values of ``old``."""
    scaled = keras.optimizers.LossScaleOptimizer
    if isinstance(new, scaled) and not isinstance(old, scaled):
        new = new.inner_optimizer
    for variable, value in zip(new.variables, old.variables, strict=True):
        variable.assign(keras.ops.cast(value, variable.dtype))
    return new


def _without_scale(model, optimizer):
    """Return what is left of ``optimizer`` if ``model`` needs no scale any more."""
    if not isinstance(optimizer, LossScaleOptimizer):
        return optimizer
    if not (optimizer.skip_spikes or "guard" in _precisions(model)):
        return optimizer.inner_optimizer
    return guarded.with_rule(optimizer, StaticLossScale(1.0))


def _hand_on_counters(old, new):
    """Give ``new`` the counters of ``old``, and its scale if both have one."""
    both = isinstance(old, LossScaleOptimizer) and isinstance(new, LossScaleOptimizer)
    if new is old or not both:
        return
    store = {}
    old.save_own_variables(store)
    new.load_own_variables(store)
    if old.scaling.only_checks and not new.scaling.only_checks:
        new.set_scale(new.initial_scale)
