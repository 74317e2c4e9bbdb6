"""Which tensors are alive at the same time: a walk through the graph of a step.

Each operation allocates its outputs on the heap, unless it may write into an input, and
frees the inputs that nothing else needs.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_mp import private
from keras_mp.memory import graphs
from keras_mp.memory.allocator import Buffer, Heap, Variable, measured_by

if TYPE_CHECKING:
    import tensorflow as tf

# Operations whose output shares their input's buffer, and operations that TensorFlow
# lets write into the buffer of an input that nothing else needs.
_ALIASES = set(
    "CheckNumerics EnsureShape ExpandDims Identity PreventGradient Reshape "
    "Snapshot Squeeze StopGradient TensorListGetItem".split()
)
_IN_PLACE = set(
    "Abs Add AddN AddV2 BiasAdd ClipByValue Cos Div DivNoNan Elu EluGrad Erf Erfc Exp "
    "Expm1 Floor LeakyRelu LeakyReluGrad Log Log1p LogSoftmax Maximum Minimum Mul "
    "MulNoNan Neg Pow RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad "
    "Round Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Sigmoid SigmoidGrad Sign Sin "
    "Softmax Softplus SoftplusGrad Softsign SoftsignGrad Sqrt SqrtGrad Square "
    "SquaredDifference Sub Tanh TanhGrad Xdivy Xlogy".split()
)
#: The part of the report that a cast belongs to, by the part of its input.
_OF_CASTS = {"weights": "casts", "gradients": "gradients"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_BRANCHES = {"If", "StatelessIf", "Case"}
_LOOPS = {"While", "StatelessWhile"}
# Twice, because the allocator is less fragmented in the first round than in later ones.
_ORDERS = 2 * (graphs.WRITTEN, graphs.DEPTH_FIRST, graphs.BREADTH_FIRST, graphs.WRITTEN)
# TensorFlow keeps buffers of zeros for sums in a step that takes more than this.
_MEMORY_FOR_SUMS = 0.8 * 2**28


def peak(
    step: Any, gradients: set[str], variables: Mapping[str, tuple[str, int]]
) -> dict[str, int]:
    """Return the bytes of each part of the report at the step's peak, as a dict.

    TensorFlow runs a step's operations on several threads, in an order that varies. So
    the step is walked through in three orders, which take turns on one allocator: as
    written; following each result to its consumer at once, as a thread does; and in
    the order in which operations become ready, as its queues do, in which updates of
    variables run during the backward pass.

    Args:
        step: A traced function.
        gradients: Names of the tensors in it that are gradients.
        variables: Part and bytes of each variable by the name of its handle.
    """
    heap, arguments = _start(step, variables, measured_by())
    for name, size in _rewritten_sums(step, variables).items():
        heap.sums[name] = heap.new(size, "activations")
    for order in _ORDERS:
        walk = _Walk(step.graph, heap, arguments, gradients, order)
        for value in walk.run():
            heap.drop(value)
    return {**heap.at_peak, "fragmentation": heap.fragmentation()}


def _start(
    step: Any, variables: Mapping[str, tuple[str, int]], measure: str | None
) -> tuple[Heap, list[Buffer]]:
    """Return a heap with the variables and a batch, and the arguments of the step."""
    heap = Heap(measure)
    held = {}
    for handle, (part, size) in variables.items():
        held[handle] = Variable(heap.new(size, part))
    inputs = step.inputs[: len(step.inputs) - len(step.captured_inputs)]
    arguments = [_argument(heap, tensor) for tensor in inputs]
    for tensor in step.captured_inputs:
        # What a constructor computed or a metric holds is eager, and has no name.
        known = held.get(getattr(tensor, "name", None))
        arguments.append(known or _argument(heap, tensor))
    return heap, arguments


def _argument(heap: Heap, tensor: tf.Tensor) -> Buffer:
    """Return a new buffer for a tensor, or for a variable that is not the model's."""
    buffer = heap.new(graphs.size_of(tensor) or 0, "activations")
    return Variable(buffer) if tensor.dtype == "resource" else buffer


def _rewritten_sums(
    step: Any, variables: Mapping[str, tuple[str, int]]
) -> dict[str, int]:
    """Return name and size of the sums for which TensorFlow keeps a buffer of zeros.

    TensorFlow's memory optimizer makes an AddN of more than two tensors add each one as
    soon as it is there, if it predicts that the step needs more than 80 % of the device
    and that the tensors are alive at the peak. It assumes that a CPU has 256 MiB, and
    that no operation works in place.
    """
    if measured_by() == "in use":
        return {}
    heap, arguments = _start(step, variables, None)
    walk = _Walk(step.graph, heap, arguments, set(), graphs.WRITTEN)
    walk.in_place = False
    walk.run()
    if heap.at_peak.total() < _MEMORY_FOR_SUMS:
        return {}
    return {
        op.name: graphs.size_of(op.outputs[0]) or 0
        for op in walk.operations
        if op.type == "AddN"
        and len(op.inputs) > 2
        and heap.peak_clock <= walk.clock[op.name]
        and any(walk.clock[t.op.name] <= heap.peak_clock for t in op.inputs)
    }


class _Walk:
    """Goes through the operations of a graph and allocates and frees their buffers.

    In a graph that XLA compiles only the results get buffers: the updates of
    `keras_mp.fused` are elementwise, and XLA turns them into one loop.
    """

    def __init__(
        self,
        graph: tf.Graph,
        heap: Heap,
        arguments: Sequence[Buffer],
        gradients: set[str],
        order: str,
        trips: int = 1,
        compiled: bool = False,
    ) -> None:
        self.graph, self.heap, self.trips = graph, heap, trips
        self.compiled = compiled
        self.results = {graphs.source(tensor).name for tensor in graph.outputs}
        self.gradients, self.order = gradients, order
        self.operations = graphs.needed(graph)
        used = [*graph.outputs, *(t for op in self.operations for t in op.inputs)]
        self.uses = collections.Counter(graphs.source(tensor).name for tensor in used)
        self.in_place = True
        self.values: dict[str, Buffer] = {}
        self.clock: dict[str, int] = {}
        self.arguments = {id(value) for value in arguments}
        for tensor, value in zip(graph.inputs, arguments, strict=True):
            self._share(tensor, value)

    def run(self) -> list[Buffer]:
        """Return the buffers of the outputs, each with one use for the caller."""
        for op in graphs.scheduled(self.operations, self.order):
            self.heap.clock += 1
            self.clock[op.name] = self.heap.clock
            if op.type in ("Placeholder", "IdentityN"):
                continue
            inputs = self._values(op.inputs)
            if op.type in _CALLS | _BRANCHES | _LOOPS:
                self._call(op, inputs)
                continue
            self._execute(op, inputs)
            for value in inputs:
                self.heap.drop(value)
        return self._values(self.graph.outputs)

    def _values(self, tensors: Iterable[tf.Tensor]) -> list[Buffer]:
        return [self.values[graphs.source(tensor).name] for tensor in tensors]

    def _share(self, tensor: tf.Tensor, value: Buffer) -> None:
        """Make ``value`` the buffer of ``tensor``, with a use for each reader."""
        self.values[tensor.name] = value
        value.uses += self.uses[tensor.name]

    def _keep(self, tensor: tf.Tensor, value: Buffer) -> Buffer:
        """Share a new ``value``, and drop the one use that it was made with."""
        self._share(tensor, value)
        self.heap.drop(value)
        return value

    def _new(self, tensor: tf.Tensor, size: int, part: str = "activations") -> Buffer:
        part = "gradients" if tensor.name in self.gradients else part
        return self._keep(tensor, self.heap.new(size, part))

    def _call(self, op: tf.Operation, inputs: list[Buffer]) -> None:
        """Walk through a function, one round of a loop or the longest of the branches.

        The inner graph frees the arguments, as if its operations were in this graph;
        but an If that is not lowered to switches holds them until its end.
        """
        inner, trips = private.tracing.functions_of(self.graph, op), self.trips
        if op.type in _LOOPS:
            inner = [f for f in inner if len(f.outputs) == len(op.outputs)]
            trips *= graphs.trips(op, [value.length for value in inputs])
        graph = max(inner, key=lambda graph: len(graph.get_operations()))
        arguments = inputs[1:] if op.type in _BRANCHES else inputs
        compiled = self.compiled or op.node_def.attr["_XlaMustCompile"].b
        walk = _Walk(
            graph, self.heap, arguments, self.gradients, self.order, trips, compiled
        )
        holds = op.type in _BRANCHES and not graphs.is_lowered(op)
        results = walk.run() if holds else []
        for value in inputs:
            self.heap.drop(value)
        if not holds:
            results = walk.run()
        for tensor, value in zip(op.outputs, results, strict=True):
            self._keep(tensor, value)

    def _execute(self, op: tf.Operation, inputs: list[Buffer]) -> None:
        first = inputs[0] if inputs else None
        if op.type == "ReadVariableOp" and isinstance(first, Variable):
            self._share(op.outputs[0], first.value)
        elif op.type in _ALIASES:
            for tensor, value in zip(op.outputs, inputs, strict=False):
                self._share(tensor, value)
        elif op.type in _LISTS:
            _LISTS[op.type](self, op, *inputs)
        elif isinstance(first, Variable) and not op.outputs:
            self._write(first)
        else:
            self._compute(op, inputs)

    def _compute(self, op: tf.Operation, inputs: list[Buffer]) -> None:
        """Make buffers for the outputs, or write into one that nothing else needs."""
        spare = self._spare(op, inputs)
        if spare is not None:
            if op.outputs[0].name in self.gradients:
                self.heap.move(spare, "gradients")
            self._share(op.outputs[0], spare)
            return
        largest = max((value.size for value in inputs), default=0)
        part = "activations"
        if op.type == "Cast":
            part = _OF_CASTS.get(inputs[0].part, part)
        for tensor in op.outputs:
            size = graphs.size_of(tensor)
            size = largest if size is None else size
            if self.compiled and tensor.name not in self.results:
                size = 0
            self._new(tensor, size, part)

    def _spare(self, op: tf.Operation, inputs: list[Buffer]) -> Buffer | None:
        """Return an input that nothing else needs and that has the output's size."""
        if op.type not in _IN_PLACE or not self.in_place or op.name in self.heap.sums:
            return None
        output = op.outputs[0]
        for tensor, value in zip(op.inputs, inputs, strict=True):
            fits = value.size == graphs.size_of(output) and tensor.dtype == output.dtype
            if fits and value.uses == 1:
                return value
        return None

    def _write(self, variable: Variable) -> None:
        """Write to a variable: in place, unless its old value is still being read."""
        old = variable.value
        if old.uses > 1:
            variable.value = self.heap.new(old.size, old.part)
            self.heap.drop(old)

    # Lists of tensors: loops collect in them what the backward pass or a caller needs.

    def _new_list(self, op: tf.Operation, *inputs: Buffer) -> None:
        made = self._new(op.outputs[0], 0)
        if op.type == "TensorListReserve":
            made.length = graphs.constant(op.inputs[1])
        elif op.type == "TensorListFromTensor":
            made.length = op.inputs[0].shape[0]
            self._put(made, inputs[0])

    def _push(self, op: tf.Operation, made: Buffer, value: Buffer) -> None:
        """Add an item, and one for each round of the loop that is not walked through.

        A value from outside of the loop is the same in all rounds.
        """
        if id(value) not in self.arguments and value.part == "activations":
            more = self.heap.new(value.size * (self.trips - 1), "activations")
            made.items.append(more)
        self._put(made, value)
        self._share(op.outputs[0], made)

    def _set_item(
        self, op: tf.Operation, made: Buffer, _: Buffer, value: Buffer
    ) -> None:
        """Allocate all items together with the first one."""
        if not made.items:
            size = value.size * int(made.length or 1)
            made.items.append(self.heap.new(size, "activations"))
        self._share(op.outputs[0], made)

    def _pop(self, op: tf.Operation, made: Buffer, *_: Buffer) -> None:
        for tensor in op.outputs:
            self._share(tensor, made)

    def _put(self, made: Buffer, value: Buffer) -> None:
        value.uses += 1
        made.items.append(value)


_LISTS = {
    "EmptyTensorList": _Walk._new_list,
    "TensorListReserve": _Walk._new_list,
    "TensorListFromTensor": _Walk._new_list,
    "TensorListPushBack": _Walk._push,
    "TensorListSetItem": _Walk._set_item,
    "TensorListPopBack": _Walk._pop,
}
