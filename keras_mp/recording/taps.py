"""What each layer of a model reads and returns, while the model is called."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_mp import dtypes, private


class Call:
    """One call of a layer, or of an operation in the graph of a Functional model.

    Attributes:
        path: Names of the containers and of the layer, joined by ``/``.
        kind: The name of its class.
        dtype: The dtype it computes in.
        outer: The index of the call around this one; None for the model's own.
        inputs: The float tensors that it read, as it read them.
        outputs: The float tensors that it returned.
        from_inside: For each output whether a call inside this one has returned it.
    """

    def __init__(self, path: str, kind: str, dtype: str, outer: int | None) -> None:
        self.path = path
        self.kind = kind
        self.dtype = dtype
        self.outer = outer
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.from_inside: list[bool] = []


class Taps:
    """Keeps the tensors that the layers of a model read and return.

    Tensors pass an identity as they enter and leave a layer, so that each has a
    gradient of its own: what flows back through this layer alone. Only tensors of the
    graph in which the taps were opened are kept, not those inside a loop of a graph;
    without a graph, all are.

    Args:
        model: A Keras model.

    Attributes:
        calls: The list of `Call`, in the order in which they began.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self.calls: list[Call] = []
        self._open: list[int] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Note the calls of the model's layers in the block."""
        self.calls, self._open = [], []
        self._graph = _graph()
        changes = [
            (each, {"call": self._tapped(each, path)})
            for each, path in located(self._model)
        ]
        with private.attributes.attributes_for_now(changes):
            yield

    def _tapped(self, layer: keras.Operation, path: str) -> Callable:
        call = layer.call
        if private.kernels.needs_graph(layer):
            call = private.kernels.as_function(call)

        @functools.wraps(call)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            if _graph() is not self._graph:
                return call(*args, **kwargs)
            index = len(self.calls)
            outer = self._open[-1] if self._open else None
            dtype = getattr(layer, "compute_dtype", "")
            noted = Call(path, type(layer).__name__, dtype, outer)
            self.calls.append(noted)
            self._open.append(index)
            try:
                args, kwargs = _passed((args, kwargs), noted.inputs)
                returned = call(*args, **kwargs)
                noted.from_inside = _found_in(returned, self.calls[index + 1 :])
                return _passed(returned, noted.outputs)
            except Exception:
                del self.calls[index:]  # a layer may be called again in another way
                raise
            finally:
                self._open.pop()

        return tapped


def located(model: keras.Model) -> list[tuple[keras.Operation, str]]:
    """Return the layers of ``model``, and operations between them, with their paths.

    A layer that is used in several places has the first of its paths.
    """
    found: dict[int, tuple[keras.Operation, str]] = {}
    for layer, path in private.layers.with_paths(model):
        if not isinstance(layer, keras.layers.InputLayer):
            found.setdefault(id(layer), (layer, path))
        for operation in private.graphs.graph_operations(layer):
            found.setdefault(id(operation), (operation, f"{path}/{operation.name}"))
    return list(found.values())


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _passed(structure: Any, kept: list[Any]) -> Any:
    """Return ``structure`` with its float tensors passed on, and these ``kept``."""

    def pass_on(leaf: Any) -> Any:
        if not _is_float_tensor(leaf):
            return leaf
        passed = tf.identity(leaf)
        vars(passed).update(_marks_of(leaf))
        kept.append(passed)
        return passed

    return keras.tree.map_structure(pass_on, structure)


def _found_in(structure: Any, calls: list[Call]) -> list[bool]:
    """Return for each float tensor in ``structure`` if one of ``calls`` gave it."""
    given = {id(output) for call in calls for output in call.outputs}
    leaves = filter(_is_float_tensor, keras.tree.flatten(structure))
    return [id(leaf) in given for leaf in leaves]


def _is_float_tensor(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and dtypes.is_float(leaf)


def _marks_of(tensor: Any) -> dict[str, Any]:
    """Return what Keras and keras_mp keep on ``tensor``: masks, logits, dtypes."""
    return {
        name: value
        for name, value in vars(tensor).items()
        if name.startswith(("_keras_", "_keras_mp_"))
    }
