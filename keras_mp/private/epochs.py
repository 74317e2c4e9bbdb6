"""How Keras's ``fit`` goes through the data of an epoch, which it shows to nobody."""

import inspect

import keras

from keras_mp.wrapping import wrap_once


def epoch_iterator_of(model):
    """Return what yields the steps of the ``fit`` that ``model`` is in, or None.

    Keras has it in a local variable of ``fit`` only. A ``fit`` of the model's own has
    none.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_locals.get("self") is model and frame.f_code.co_name == "fit":
            return frame.f_locals.get("epoch_iterator")
        frame = frame.f_back
    return None


def enumerate_with(epoch_iterator, wrapper):
    """Have ``epoch_iterator`` enumerate the steps of an epoch by ``wrapper(method)``.

    The method yields the first and the last number of an execution's steps, and the
    iterator that its batches are drawn from.
    """
    wrap_once(epoch_iterator, "_enumerate_iterator", "steps", wrapper)


def new_iterator(epoch_iterator):
    """Return a new iterator over the data of ``epoch_iterator``."""
    return iter(epoch_iterator._get_iterator())


def end_epoch_of_data(epoch_iterator):
    """Have the data of ``epoch_iterator`` begin anew.

    Its public ``reset`` also ends the loop over steps.
    """
    epoch_iterator._current_iterator = None
    epoch_iterator.data_adapter.on_epoch_end()


def element_specs(epoch_iterator):
    """Return what has the shapes and dtypes of the batches of ``epoch_iterator``."""
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name),
        epoch_iterator._get_iterator().element_spec,
    )


def shuffles_without_seed(epoch_iterator):
    """Return whether Keras shuffles arrays, and TensorFlow has no seed to do so by."""
    from tensorflow.python.eager import context

    return bool(_shuffle_of(epoch_iterator)) and context.global_seed() is None


def shuffles_rows_of_batches(epoch_iterator):
    """Return whether Keras shuffles arrays within batches, by ``shuffle="batch"``."""
    return _shuffle_of(epoch_iterator) == "batch"


def _shuffle_of(epoch_iterator):
    return getattr(epoch_iterator.data_adapter, "_shuffle", False)


def py_dataset_of(epoch_iterator):
    """Return the `keras.utils.PyDataset` that ``epoch_iterator`` reads, or None."""
    return getattr(epoch_iterator.data_adapter, "py_dataset", None)


def begin_with_epoch(model, epoch):
    """Have the ``fit`` that ``model`` is in begin with the number ``epoch``.

    As Keras's own `keras.callbacks.BackupAndRestore` has it. None: with what ``fit``
    was given.
    """
    model._initial_epoch = epoch
