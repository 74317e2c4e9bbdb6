"""What ``fit`` and ``evaluate`` call to run the next steps on an iterator."""

import functools
import inspect

import keras

from keras_mp import private


def speed_up(model):
    """Have ``fit`` of ``model`` trace its step once, and run each in one graph.

    A step that creates variables, as the first one of an optimizer does, is traced by
    TensorFlow a second time, which takes a third of the time up to the first step.

    Keras puts the logs of a step into a ``tf.experimental.Optional`` and asks on the
    host whether there are any, which takes some 0.3 to 0.6 ms of every step. An
    iterator that has come to its end says so by itself.
    """
    if keras.backend.backend() == "tensorflow":
        for choose, mark in (_in_graph, "graph"), (_traced_once, "traced once"):
            private.trainer.run_steps_with(
                model, functools.partial(choose, model), mark
            )


def _traced_once(model, step, make):
    """Return the function that Keras makes, preceded by the creation of all variables.

    Keras does so itself under a strategy. A step of the user's own may train a part of
    the model, by another optimizer.
    """
    function = make()
    trains = step.__name__ == "train_step" and not model.run_eagerly
    own_step = not private.layers.is_code_of_keras(inspect.unwrap(step))
    if own_step or not trains or private.trainer.strategy_of(model):
        return function
    is_built = False

    def execute(iterator):
        nonlocal is_built
        specs = getattr(iterator, "element_spec", None)  # a list of batches has none
        if not is_built and specs is not None and model.trainable_variables:
            _build(model, specs)
            is_built = True
        return function(iterator)

    return execute


def _build(model, specs):
    """Create what the first step would, without a call of code of the user's own.

    A layer of the user's own may have layers that it calls, and so builds, in training
    only; the optimizer has to know of their variables.
    """
    if not private.trainer.runs_own_code(model):
        private.trainer.build_for(model, specs)
    elif not model.optimizer.built:
        if all(layer.built for layer in private.layers.walk(model)):
            model.optimizer.build(model.trainable_variables)


def _in_graph(model, _, make):
    """Return the function that Keras makes, or what does the same with an iterator.

    Args:
        model: A compiled Keras model.
        make: ``make()`` returns Keras's function, which runs a step for each batch in a
            list, and returns the last logs.
    """
    import tensorflow as tf

    function = make()

    strategy = private.trainer.strategy_of(model)
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    several = model.steps_per_execution
    if model.run_eagerly or (several > 1 and replicas == 1):
        return function

    @tf.autograph.experimental.do_not_convert
    def run(iterator):
        first = iterator.get_next()  # raises if no batch is left
        if several == 1:
            return function([first])
        return _go_on(function, iterator, several, first)

    run = tf.function(run, reduce_retracing=True)
    kinds = (tf.data.Iterator, tf.distribute.DistributedIterator)

    def execute(iterator):
        return run(iterator) if isinstance(iterator, kinds) else function(iterator)

    return execute


def _go_on(function, iterator, several, first):
    """Run a step on the batch ``first`` and further ones, ``several`` in all at most.

    Keras's own loop calls the ``tf.function`` of a step in a branch, where TensorFlow
    leaves what an all-reduce reads without a value ("You must feed a value for
    placeholder"). Here the branches hold none but the iterator.
    """
    import tensorflow as tf

    def unfinished(steps, batch, logs):
        return tf.logical_and(steps < several, batch.has_value())

    def step(steps, batch, logs):
        logs = function([batch.get_value()])
        batch = tf.cond(
            steps + 1 < several, iterator.get_next_as_optional, lambda: batch
        )
        return steps + 1, batch, logs

    second = iterator.get_next_as_optional()
    logs = function([_shaped_as(second.element_spec, first)])
    return tf.while_loop(unfinished, step, (tf.constant(1), second, logs))[-1]


def _shaped_as(spec, batch):
    """Return ``batch`` with the static shapes of ``spec``, which may know fewer sizes.

    For other static shapes TensorFlow would trace the step once more.
    """
    import tensorflow as tf

    tensors = tf.nest.flatten(batch, expand_composites=True)
    specs = tf.nest.flatten(spec, expand_composites=True)
    shaped = [
        tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=each.shape)
        for tensor, each in zip(tensors, specs, strict=True)
    ]
    return tf.nest.pack_sequence_as(batch, shaped, expand_composites=True)
