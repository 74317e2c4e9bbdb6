"""Containers whose layers read raw data: nothing is rounded on its way to them."""

import keras

from keras_mp import precision_lists, private

_READS = "_keras_mp_reads_data"


def holds_readers(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` is a container of layers that read raw data."""
    return any(map(_reads_data, private.layers.sublayers(layer)))


def is_guarded(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` leaves casts of its inputs to the layers inside."""
    return vars(layer).get(_READS, False)


def guard(layer: keras.layers.Layer) -> None:
    """Make Keras not cast the inputs of a container of layers that read raw data.

    A cast to float16 would change the id 2,049, and make numbers above 65,504 infinite.
    Code of the user's own in its ``call`` still gets 16 bits; the layer that reads data
    takes the tensors that these were rounded from (`keras_mp.flow`).
    """
    if not is_guarded(layer):
        vars(layer)[_READS] = True
        layer.autocast = False


def guard_with(layer: keras.layers.Layer, sublayer: keras.layers.Layer) -> None:
    """Guard ``layer``, which is about to get ``sublayer``, if this reads raw data."""
    if _reads_data(sublayer):
        guard(layer)


def _reads_data(layer):
    return any(
        isinstance(inner, precision_lists.DATA) for inner in private.layers.walk(layer)
    )
