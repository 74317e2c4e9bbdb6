"""Operations of `keras.ops` in the graph of a Functional model.

``x / ops.sqrt(ops.sum(x * x))`` is a graph of four operations that are in no layer.
Operations that need float32 compute in it, and so do those that only such ones read.
Their results stay in float32: layers cast their inputs, other operations promote theirs
to the wider dtype. Results of all others remember how to compute them in float32, for a
model that returns them.
"""

import functools

import keras

from keras_mp import dtypes, flow, precision_lists, private
from keras_mp.ops import float32
from keras_mp.wrapping import wrap_once

_STEEP = "_keras_mp_steep"


def guard_operations(model: keras.Model) -> None:
    """Guard the operations in the graph of ``model``, a Functional model."""
    operations = private.graphs.graph_operations(model)
    for operation in reversed(operations):  # readers first
        steep = _is_steep(operation) or _feeds_steep_only(operation)
        vars(operation)[_STEEP] = steep
        wrapper = functools.partial(_guarded, operation)
        wrap_once(operation, "call", "operation", wrapper)


def _is_steep(operation):
    return type(operation).__name__ in precision_lists.FLOAT32_OPS


def _feeds_steep_only(operation):
    readers = private.graphs.readers_of_operation(operation)
    return bool(readers) and all(vars(reader).get(_STEEP) for reader in readers)


def _guarded(operation, call):
    @functools.wraps(call)
    def guarded(*args, **kwargs):
        floats = [
            leaf for leaf in keras.tree.flatten((args, kwargs)) if dtypes.is_float(leaf)
        ]
        given = {flow.dtype_in_keras(leaf) for leaf in floats}
        dtype = keras.backend.result_type(*given) if given else None
        if dtype not in dtypes.LOW_PRECISION:
            return call(*args, **kwargs)

        def exact():
            widened, named = flow.widened((args, kwargs))
            return float32(call)(*widened, **named)

        # The user has asked for the dtype of a cast.
        if type(operation).__name__ == "Cast":
            return call(*args, **kwargs)
        if vars(operation)[_STEEP]:
            return flow.hand_on(exact(), dtype)
        outputs = call(*args, **kwargs)
        if any(outputs is leaf for leaf in floats):  # nothing is computed
            return outputs
        if any(map(dtypes.is_low, keras.tree.flatten(outputs))):
            return _remembering(outputs, exact)
        return flow.hand_on(outputs, dtype)

    return guarded


def _remembering(outputs, exact):
    """Return ``outputs``; a single tensor remembers how to compute it in float32."""
    return flow.remember(outputs, exact) if keras.ops.is_tensor(outputs) else outputs
