"""Containers that hand data on to their layers as it came."""

import functools

from keras_mp import lists, private


def guard(layer, sublayer=None):
    """Have a container of layers that read data leave the casts of inputs to them.

    Rounded to 16 bits on its way in, an id of 2,049 is another, and a number beyond
    65,504 none. The container's own weights are read in its compute dtype as before.
    ``sublayer`` is one that it is about to get.
    """
    inside = private.sublayers(layer) if sublayer is None else [sublayer]
    if not any(map(_reads_data, inside)):
        return False
    if layer.autocast:
        layer.autocast = False
        layer.call = _reading_in(layer, layer.call)
    return True


def _reads_data(layer):
    return any(isinstance(inner, lists.DATA) for inner in private.walk(layer))


def _reading_in(layer, call):
    # Keras reads weights in the dtype of the layer around if ``autocast`` is off.
    @functools.wraps(call)
    def reading(*args, **kwargs):
        with private.variables_read_in(layer.compute_dtype):
            return call(*args, **kwargs)

    return reading
