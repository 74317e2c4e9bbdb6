"""Layers and models around others: their code gets the dtypes that Keras gives it.

Three kinds of ``call`` have other layers inside. The graph of a Functional or
Sequential model casts what it hands from layer to layer, so that float32 may flow on
in it. Code of the user's own gets what Keras would give it. Keras's own wrappers, such
as ``TimeDistributed``, are written for the one dtype of their policy.
"""

import functools

import keras

from keras_mp import casts, dtypes, flow, private
from keras_mp.guards import containers, kept, own_islands
from keras_mp.wrapping import wrap_once

_EXACT_HEADS = "_keras_mp_exact_heads"


def guard_graph(model):
    """Have the layers of a Functional or Sequential model hand on float32."""
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


def guard_own(layer):
    """Have the code of a layer of the user's own get what Keras would give it."""
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


def guard_wrapper(layer):
    """Have a wrapper of Keras's, and the layers inside it, hand on what Keras would.

    In the graph of a model float32 may flow through it.
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


def set_exact_heads(model, exact):
    """Have ``model`` return products in float32 to a step, or in 16 bits."""
    vars(model)[_EXACT_HEADS] = exact
