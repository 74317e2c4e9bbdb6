"""What Keras keeps private of how a model is compiled, built and run."""

import contextlib
import functools

import keras

from keras_mp.private import attributes, graphs


def forget_compiled(model):
    """Have ``model`` ask to be compiled again."""
    model.optimizer = None
    model.compiled = False


def exchange_optimizer(model, old, new):
    """Have the compiled ``model`` train with the optimizer ``new`` instead of ``old``.

    Where its own ``compile`` keeps ``old``, or the optimizer inside, under other names,
    it finds ``new`` there too. It is saved as if ``compile`` had been given ``new``:
    only a private record of Keras's tells how a model was compiled.
    """
    if new is old:
        return
    replaced = (old, getattr(old, "inner_optimizer", old))
    for name, value in list(vars(model).items()):
        if any(value is each for each in replaced):
            setattr(model, name, new)
    model._compile_config.config["optimizer"] = new


def forget_dtypes(model):
    """Have ``model`` act on the policies of its layers as they are now.

    Keras keeps what ``fit``, ``evaluate`` and ``predict`` have traced.
    """
    model.train_function = model.test_function = model.predict_function = None
    if isinstance(model, keras.Sequential):
        graphs.widen_made_input(model._layers)


def build_for(model, data):
    """Create the variables of ``model``, its metrics and its optimizer for ``data``.

    Keras does it before ``fit`` under a strategy only; eager steps create variables
    as they go. A model without a usable ``call`` cannot be built from its data; its
    own ``train_step`` knows how.
    """
    with contextlib.suppress(RuntimeError):
        model._symbolic_build(data_batch=data)


def reporting_metrics(model):
    """Return each metric of ``model`` that reports, with those that count for it.

    Public ``metrics`` has all that were given to ``compile`` as one, which lists them
    from the first batch on; those given as objects have their variables before.

    Returns:
        A list of pairs: a metric, and a list of metrics, itself for most.
    """
    compiled = getattr(model, "_compile_metrics", None)
    return [
        (metric, _compiled_metrics(metric) if metric is compiled else [metric])
        for metric in model.metrics
    ]


def _compiled_metrics(compiled):
    if compiled.built:
        return compiled.metrics
    given = keras.tree.flatten(
        (compiled._user_metrics, compiled._user_weighted_metrics)
    )
    return [each for each in given if isinstance(each, keras.metrics.Metric)]


def strategy_of(model):
    """Return the ``tf.distribute`` strategy ``model`` was created under, or None.

    Public ``distribute_strategy`` answers with the strategy of the present scope for a
    model that has none. Keras's other backends have no strategies.
    """
    return getattr(model, "_distribute_strategy", None)


def build_from(model, batches):
    """Have ``model`` build itself under its strategy from what ``batches`` yields.

    Keras's ``_maybe_symbolic_build`` makes one batch of the replicas' shares in a way
    that needs shares of equal size on one machine. ``_symbolic_build``, which it leads
    to, takes an iterator too, and draws from it only if anything is unbuilt. A model
    without a ``call``, such as a GAN, it cannot build, and `fit` would end there.

    Args:
        model: A Keras model that was created under a strategy.
        batches: ``batches(epoch_iterator)``, a generator that yields as it does,
            with lists of batches that have a shape and a dtype.
    """

    def build(iterator=None, data_batch=None):
        if type(model).call is keras.Model.call:
            return
        with strategy_of(model).scope():
            if iterator is not None:
                iterator = batches(iterator)
            model._symbolic_build(iterator=iterator, data_batch=data_batch)

    model._maybe_symbolic_build = build


def run_steps_with(model, choose, mark):
    """Have ``choose(make)`` replace what ``fit`` and ``evaluate`` call to execute.

    Keras keeps it as ``train_function`` and ``test_function``, and makes both anew in
    ``_make_function``. ``make()`` makes it as well: given an iterator, it runs
    ``steps_per_execution`` steps; given a list, a step for each batch in it. Does
    nothing the second time with the same ``mark``.
    """
    make = model._make_function
    marks = getattr(make, "_keras_mp_chooses", ())
    if mark in marks:
        return

    def chosen(step):
        return choose(functools.partial(make, step))

    chosen._keras_mp_chooses = (*marks, mark)
    model._make_function = chosen


def epoch_ends(model, ended):
    """Return a context in which ``ended()`` is called as an epoch of ``fit`` ends.

    Before its validation and its callbacks. Keras then reads the metrics by a method of
    its own, and so it does where ``evaluate`` ends. A callback would be public, but a
    ``fit`` that was overridden need not take any.
    """
    read = model._get_metrics_result_or_logs

    def end_and_read(logs):
        ended()
        return read(logs)

    return attributes.replaced(model, _get_metrics_result_or_logs=end_and_read)
