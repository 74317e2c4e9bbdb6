"""Layers and models that contain others: which dtypes their code gets from these.

Three kinds of ``call`` have other layers inside. In the graph of a Functional or
Sequential model each layer casts its inputs, so that outputs may stay in float32. Code
of the user's own gets the dtypes that Keras would give it. Keras's wrappers, such as
``TimeDistributed``, are written for the one dtype of their policy.
"""

import functools

import keras

from keras_mp import casts, dtypes, flow, private
from keras_mp.guards import containers, kept, own_islands
from keras_mp.wrapping import wrap_once

_EXACT_HEADS = "_keras_mp_exact_heads"


def guard_graph(model: keras.layers.Layer) -> None:
    """Let layers of a Functional or Sequential model return float32 to one another."""
    wrap_once(model, "call", "graph", functools.partial(_graph, model))


def _graph(model, call):
    @functools.wraps(call)
    def graph(*args, **kwargs):
        if containers.is_guarded(model):
            args, kwargs = flow.unrounded((args, kwargs))
        with flow.read_by(flow.GRAPH):
            outputs = call(*args, **kwargs)
        return _handed_out(model, outputs)

    return graph


def guard_own(layer: keras.layers.Layer) -> None:
    """Make the code of a layer of the user's own get the dtypes that Keras gives it."""
    wrap_once(layer, "call", "own", functools.partial(_own, layer))


def _own(layer, call):
    @functools.wraps(call)
    def own(*args, **kwargs):
        if kept.dtype_around(layer) is not None:  # also where Keras casts no inputs
            args, kwargs = casts.cast_floats((args, kwargs), "float32")
        if not containers.is_guarded(layer):
            outputs = own_islands.call(layer, call, args, kwargs)
        else:
            # Keras casts neither inputs nor variables while `autocast` is off.
            args, kwargs = flow.rounded((args, kwargs), layer.compute_dtype)
            with private.variables.variables_read_in(layer.compute_dtype):
                outputs = own_islands.call(layer, call, args, kwargs)
        return _handed_out(layer, outputs)

    return own


def guard_wrapper(layer: keras.layers.Layer) -> None:
    """Make a wrapper of Keras's, and layers inside it, return the dtypes of Keras.

    In the graph of a model they may return float32.
    """
    wrap_once(layer, "call", "wrapper", functools.partial(_wrapper, layer))


def _wrapper(layer, call):
    @functools.wraps(call)
    def wrapper(*args, **kwargs):
        inside = flow.GRAPH if flow.reader() == flow.GRAPH else flow.CODE
        with flow.read_by(inside):
            outputs = call(*args, **kwargs)
        low = dtypes.computes_low(layer)
        return flow.hand_on(outputs, layer.compute_dtype) if low else outputs

    return wrapper


def _handed_out(layer, outputs):
    of_model = isinstance(layer, keras.Model)
    in_step = flow.reader() == flow.STEP and of_model
    if kept.dtype_around(layer) is not None and not in_step:
        return kept.handed_on(layer, outputs)
    exact_heads = vars(layer).get(_EXACT_HEADS, False)
    return flow.hand_out(outputs, of_model=of_model, exact_heads=exact_heads)


def set_exact_heads(model: keras.layers.Layer, exact: bool) -> None:
    """Make ``model`` return products in float32 to a step, or in 16 bits."""
    vars(model)[_EXACT_HEADS] = exact
