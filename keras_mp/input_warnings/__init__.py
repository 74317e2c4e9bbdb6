"""What a model's inputs lose where a layer reads them in 16 bits."""

import functools

import keras

from keras_mp import watching
from keras_mp.input_warnings.extremes import Extremes
from keras_mp.wrapping import is_wrapped, wrap_once

__all__ = ["watch"]


def watch(model: keras.Model) -> None:
    """Have ``model.fit`` warn of data that a layer rounds beyond recognition.

    Numbers beyond 65,504 are infinite in float16; and of whole numbers, such as ids,
    float16 has each up to 2,048 and bfloat16 up to 256. A layer that reads raw data
    reads both as they are, and so does any in float32.

    Every training step finds where numbers of its batch are cast to 16 bits, through
    slices, concatenations, arithmetic, submodels and layers of the user's own, and
    notes their extremes on the device: of the first 16,384 numbers before each cast, 64
    casts at the most. They are read, and so
    synchronise with it, after the first step of ``fit``, a few later ones and each
    epoch; an input is warned of once in a ``fit``. Wherever data comes from, arrays,
    datasets or Python, it is seen as it is used, and neither drawn nor changed. Under a
    strategy every machine warns of what its own replicas see. Sparse and ragged tensors
    pass.

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
    """Return what yields the faults in ``extremes`` from now on, each input's once."""
    warned = set()
    extremes.reset()

    def look():
        for name, message in extremes.faults():
            if name not in warned:
                warned.add(name)
                yield message

    return look
