"""Layers whose product can be computed again in float32, if it is the model's head.

Which layer is the head of a model of the user's own is known only when its ``call`` has
returned. So each product in 16 bits remembers how to compute it in float32. A graph
does not run the computations that it does not use.
"""

import functools

import keras

from keras_mp import dtypes, flow, precision_lists, private
from keras_mp.wrapping import wrap_once


def is_product(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` is a product with its own weights, and nothing else."""
    return isinstance(
        layer, precision_lists.PRODUCTS
    ) and not private.layers.has_own_call(layer)


def guard(layer: keras.layers.Layer) -> None:
    """Make the result of ``layer`` remember how to compute all of it in float32."""
    wrap_once(layer, "call", "product", functools.partial(_remembering, layer))


def _remembering(layer, call):
    @functools.wraps(call)
    def remembering(*args, **kwargs):
        outputs = call(*args, **kwargs)
        if not dtypes.is_low(outputs):
            return outputs

        def exact():
            widened, named = flow.widened((args, kwargs))
            with private.attributes.in_float32(layer):
                return call(*widened, **named)

        return flow.remember_product(outputs, exact)

    return remembering
