"""What Keras keeps private of how a model is compiled, built and run."""

import contextlib
import functools

import keras

from keras_mp.private import attributes, graphs, layers
from keras_mp.wrapping import wrap_once

# What a step calls of a model, and of what ``compile`` was given.
_METHODS = ("call", "compute_loss", "compute_metrics")
_MEASURES = ("loss", "metrics", "weighted_metrics")


def forget_compiled(model):
    """Have ``model`` ask to be compiled again."""
    model.optimizer = None
    model.compiled = False


def exchange_optimizer(model, old, new):
    """Have the compiled ``model`` train with the optimizer ``new`` instead of ``old``.

    Attributes in which the model's own ``compile`` keeps ``old``, or the optimizer
    inside it, are set to ``new`` too. The model is saved as if ``compile`` had been
    given ``new``: Keras records what ``compile`` was given in a private attribute.
    """
    if new is old:
        return
    replaced = (old, getattr(old, "inner_optimizer", old))
    for name, value in list(vars(model).items()):
        if any(value is each for each in replaced):
            setattr(model, name, new)
    model._compile_config.config["optimizer"] = new


def keep_bare_when_loaded(model):
    """Have the saved ``model`` be loaded with a bare optimizer, if it has one.

    Keras compiles a loaded model again, and wraps its optimizer if mixed_float16 is
    global by then. The moments in the file are not those of a wrapped one, and are left
    out. ``compile`` has an argument against it, which Keras does not save.

    Not for a model with code of the user's own: what that creates without a dtype is
    not in the file and gets the policy that is global then, which may need a scale.
    """
    keras_compiled = model.compiled and type(model).compile is keras.Model.compile
    own = any(map(layers.has_own_call, layers.walk(model)))
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if keras_compiled and not (own or scaled):
        model._compile_config.config["auto_scale_loss"] = False


def forget_dtypes(model):
    """Have ``model`` act on the policies of its layers as they are now.

    Keras keeps what ``fit``, ``evaluate`` and ``predict`` have traced.
    """
    model.train_function = model.test_function = model.predict_function = None
    if isinstance(model, keras.Sequential):
        graphs.widen_made_input(model._layers)


def runs_own_code(model):
    """Return whether Keras's steps of the compiled ``model`` run code of the user's."""
    methods = [getattr(type(model), name) for name in _METHODS]
    given = [model._compile_config.config.get(name) for name in _MEASURES]
    measures = [
        code
        for each in keras.tree.flatten(given)
        if each is not None and not isinstance(each, str)
        # Keras's wrappers of functions have them as attributes.
        for code in (each, getattr(each, "fn", None), getattr(each, "_fn", None))
    ]
    code = [*methods, *filter(None, measures)]
    own = any(map(layers.has_own_call, layers.walk(model)))
    return own or not all(map(layers.is_code_of_keras, code))


def build_for(model, data):
    """Create the variables of ``model``, its metrics and its optimizer for ``data``.

    Keras does so before ``fit`` under a strategy only; an eager step creates variables
    when it needs them. A model without a usable ``call`` cannot be built from its data,
    and is left to its own ``train_step``. Whatever else is wrong, that step finds it
    too, and says so as it does with Keras.
    """
    with contextlib.suppress(Exception):
        model._symbolic_build(data_batch=data)


def reporting_metrics(model):
    """Return each metric of ``model`` that reports, with those that count for it.

    In the public ``metrics`` all that were given to ``compile`` are one metric, which
    lists them from the first batch on. Metrics that were given as objects have their
    variables before that.

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


def loss_of(model, x, y, y_pred, sample_weight):
    """Return the loss of a training step of ``model``, whatever its class defines.

    Public ``compute_loss`` may or may not take ``training``; Keras's steps call this.
    """
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
    )


def compiled_losses(model, y, y_pred):
    """Return the losses that ``model`` was compiled with, as pairs (name, loss).

    They are made from the first batch, as a step would. Public ``loss`` is what was
    given: names and functions, in any structure. The name of one of several is that of
    its output.
    """
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None or y is None:
        return []
    if not compiled.built:
        with keras.StatelessScope():  # in which its means count nothing
            compiled(y, y_pred)
    losses = compiled._flat_losses
    if len(losses) == 1:
        return [(losses[0].loss.name, losses[0].loss)]
    return [(each.name, each.loss) for each in losses]


def losses_uncounted(model):
    """Return what to change for the means of the losses of ``model`` to count nothing.

    One for each of several losses. Counting one batch alone would have other machines
    wait.

    Returns:
        A list, as of `attributes.attributes_for_now`.
    """
    compiled = getattr(model, "_compile_loss", None)
    metrics = [] if compiled is None else compiled.metrics
    return [(metric, {"update_state": _count_nothing}) for metric in metrics]


def _count_nothing(*args, **kwargs):
    pass


def takes_training(model):
    """Return whether the ``call`` of ``model`` takes the argument ``training``."""
    return model._call_has_training_arg


def strategy_of(model):
    """Return the ``tf.distribute`` strategy ``model`` was created under, or None.

    The public ``distribute_strategy`` of a model that has none is the strategy of the
    present scope. Keras's other backends have no strategies.
    """
    return getattr(model, "_distribute_strategy", None)


def build_from(model, batches):
    """Have ``model`` build itself under its strategy from what ``batches`` yields.

    Keras's ``_maybe_symbolic_build`` makes one batch of the replicas' shares in a way
    that needs shares of equal size on one machine, and calls ``_symbolic_build``. That
    method also takes an iterator, from which it draws only if anything is unbuilt. It
    cannot build a model without a ``call``, such as a GAN, and `fit` would raise.

    Args:
        model: A Keras model that was created under a strategy.
        batches: ``batches(epoch_iterator)``, a generator that yields as it does,
            with lists of batches that have a shape and a dtype.
    """

    def build(iterator=None, data_batch=None):
        if not layers.has_call(model):
            return
        strategy = strategy_of(model)
        with strategy.scope() if strategy else contextlib.nullcontext():
            if iterator is not None:
                iterator = batches(iterator)
            model._symbolic_build(iterator=iterator, data_batch=data_batch)

    model._maybe_symbolic_build = build


@contextlib.contextmanager
def assets_loaded_by(load):
    """Have Keras call ``load(model, folder)`` for models that it loads in the block.

    It calls the method ``load_assets`` of the model, which it has just made, so that
    only the class can have one. Models of a class with one of its own are left out.
    """
    keras.Model.load_assets = load
    try:
        yield
    finally:
        del keras.Model.load_assets


def track(model, part, name):
    """Have TensorFlow's checkpoints of ``model`` hold ``part`` under ``name``.

    An attribute would be public, but the keys of a checkpoint, and Keras's walk through
    a model that it saves, are made of attributes. Does nothing the second time.
    """
    if model._lookup_dependency(name) is None:
        model._track_trackable(part, name)


def run_steps_with(model, choose, mark):
    """Have ``choose(step, make)`` replace what ``fit`` and ``evaluate`` call.

    Keras keeps it as ``train_function`` and ``test_function``, and makes both anew in
    ``_make_function``. ``make()`` makes it as well from ``step``, the ``train_step`` or
    ``test_step``: given an iterator, it runs ``steps_per_execution`` steps; given a
    list, a step for each batch in it. Does nothing the second time with the same
    ``mark``.
    """

    def choosing(make):
        @functools.wraps(make)
        def chosen(step):
            return choose(step, functools.partial(make, step))

        return chosen

    wrap_once(model, "_make_function", mark, choosing)


def epoch_ends(model, ended):
    """Return a context in which ``ended()`` is called as an epoch of ``fit`` ends.

    The call comes before the epoch's validation and callbacks, where Keras reads the
    metrics by a private method; it does so where ``evaluate`` ends, too. A callback
    would be public, but a ``fit`` of the user's own may take none.
    """
    read = model._get_metrics_result_or_logs

    def end_and_read(logs):
        ended()
        return read(logs)

    replaced = {"_get_metrics_result_or_logs": end_and_read}
    return attributes.attributes_for_now([(model, replaced)])
