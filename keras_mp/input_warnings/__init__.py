"""Warnings of data that is rounded too much where a layer reads it in 16 bits."""

import functools

import keras

from keras_mp import watching
from keras_mp.input_warnings.extremes import Extremes
from keras_mp.wrapping import is_wrapped, wrap_once

__all__ = ["watch"]


def watch(model: keras.Model) -> None:
    """Make ``model.fit`` warn of data that a layer rounds beyond recognition.

    In float16, numbers above 65,504 are infinite. Whole numbers, such as ids, are exact
    up to 2,048 in float16 and up to 256 in bfloat16. Layers that read raw data, and
    layers in float32, read all of them exactly.

    Every training step finds where numbers of its batch are cast to 16 bits, through
    slices, concatenations, arithmetic, submodels and layers of the user's own. It notes
    their extremes on the device: of the first 16,384 numbers before each cast, for at
    most 64 casts. After the first step of ``fit``, a few later steps and each epoch the
    extremes are read, which synchronises with the device. There is one warning for each
    input in a ``fit``. The data may come from arrays, datasets or Python; it is not
    changed, and no batch is taken for the check. Under a strategy every machine warns
    of the data of its own replicas. Sparse and ragged tensors are not checked.

    Args:
        model: A Functional, Sequential or subclassed model.

    Example:

    >>> import warnings
    >>> price = keras.Input((1,), name="price")
    >>> model = keras.Sequential([price, keras.layers.Dense(1)])
    >>> loss = keras.losses.BinaryCrossentropy(from_logits=True)
    >>> keras_mp.compile(model, "sgd", loss, policy="mixed_float16")  # watches it
    >>> one = keras.ops.ones((1, 1))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     history = model.fit(1e6 * one, one, verbose=0)
    >>> "Input 'price'" in str(caught[0].message)
    True
    """
    if not is_wrapped(model, "train_step", "inputs"):
        extremes = Extremes(model)
        wrap_once(model, "train_step", "inputs", functools.partial(_noting, extremes))
        watching.watch(model, "inputs", functools.partial(_begin, extremes))


def _noting(extremes, train_step):
    """Return ``train_step`` that notes the extremes of its batch."""

    @functools.wraps(train_step)
    def noting(data):
        logs = train_step(data)
        extremes.note(keras.utils.unpack_x_y_sample_weight(data)[0])
        return logs

    return noting


def _begin(extremes):
    """Return a function that yields the faults from now on, once for each input."""
    warned = set()
    extremes.reset()

    def look():
        for name, message in extremes.faults():
            if name not in warned:
                warned.add(name)
                yield message

    return look
