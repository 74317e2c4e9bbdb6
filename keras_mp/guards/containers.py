"""Containers that hand data on to their layers as it came."""

import functools

from keras_mp import lists, private


def holds_readers(layer):
    """Return whether ``layer`` is a container of layers that read data."""
    return any(map(_reads_data, private.sublayers(layer)))


def is_guarded(layer):
    """Return whether ``layer`` leaves the casts of inputs to the layers inside."""
    return not layer.autocast


def guard(layer):
    """Have a container of layers that read data leave the casts of inputs to them.

    Rounded to 16 bits on its way in, an id of 2,049 is another, and a number beyond
    65,504 none. The container's own weights are read in its compute dtype as before.
    """
    if not is_guarded(layer):
        layer.autocast = False
        layer.call = _reading_in(layer, layer.call)


def guard_with(layer, sublayer):
    """Guard ``layer``, which is about to get ``sublayer``, if that reads data."""
    if _reads_data(sublayer):
        guard(layer)


def _reads_data(layer):
    return any(isinstance(inner, lists.DATA) for inner in private.walk(layer))


def _reading_in(layer, call):
    # Keras reads weights in the dtype of the layer around if ``autocast`` is off.
    @functools.wraps(call)
    def reading(*args, **kwargs):
        with private.variables_read_in(layer.compute_dtype):
            return call(*args, **kwargs)

    return reading
