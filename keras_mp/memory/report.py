"""The predicted memory of training as a report, and the largest batch that fits.

The step is traced for one batch size and walked through, and what is alive at its peak
is counted by kind. The largest batch is found by repeating this for other sizes.
"""

import concurrent.futures
import dataclasses
import numbers
import operator
import textwrap
from collections.abc import Callable
from typing import Any

import keras

from keras_mp import arguments, hardware, policies, private, tables
from keras_mp.memory import liveness, trace
from keras_mp.memory.allocator import measured_by
from keras_mp.optimizer import LossScaleOptimizer

# What a process takes beyond the tensors when it trains on a CPU: the graph; small
# tensors and constants, some of which malloc keeps for each thread; and the kernels'
# scratch memory, which grows with their inputs. Fitted to medians of four trainings of
# each of the 24 cases in `benchmarks/bench-memory.json`, of 180 to 920 MB, with
# TensorFlow 2.21 on two cores.
_RUNTIME = 36_000_000
_RUNTIME_SHARE = 0.1
_PARTS = (
    "weights optimizer_state gradients casts activations fragmentation runtime".split()
)


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Predicted peak memory of training, in bytes; ``print`` shows it as a table.

    Attributes:
        policy: Name of the dtype policy.
        batch_size: Rows of a batch.
        weights: The model's variables.
        optimizer_state: The optimizer's variables.
        gradients: Gradients of weights that are alive at the peak.
        casts: Low-precision copies of weights that are alive at the peak.
        activations: All other tensors that are alive at the peak: activations and
            their gradients, the batch and temporaries.
        fragmentation: What the allocator holds beyond that, in free blocks that are
            too small.
        runtime: On a CPU 36 MB and a tenth of all else: an average of what TensorFlow
            takes for graphs, threads and kernels. 0 on a GPU, whose allocator does not
            count it.

    All sizes are whole numbers of bytes.
    """

    policy: str
    batch_size: int
    weights: int
    optimizer_state: int
    gradients: int
    casts: int
    activations: int
    fragmentation: int
    runtime: int
    _predict: Callable[[int], "MemoryReport"] = dataclasses.field(
        repr=False, compare=False
    )

    @property
    def peak(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, part) for part in _PARTS)

    def largest_batch(self, memory: int | None = None) -> int:
        """Return the largest batch size that is predicted to fit; 0 if none does.

        It is found to within 2 %, by tracing the step for about ten sizes. Does not
        synchronise with the device.

        Args:
            memory: Bytes that training may take. Defaults to what is free now: on the
                first GPU, else what Linux reports as available.

        Returns:
            Rows of a batch, an int.

        Raises:
            ValueError: ``memory`` is None and the system does not report it.
        """
        limit = _free_memory() if memory is None else memory
        peaks = {self.batch_size: self.peak}
        while True:
            fits = max(
                (size for size, peak in peaks.items() if peak <= limit), default=0
            )
            fails = min((size for size in peaks if size > fits), default=None)
            if fails is not None and fails - fits <= max(1, fits // 50):
                return fits
            size = _next_size(peaks, limit, fits, fails)
            peaks[size] = self._predict(size).peak

    def __str__(self) -> str:
        rows = [(part.replace("_", " "), getattr(self, part)) for part in _PARTS]
        rows.append(("peak", self.peak))
        title = f"Peak memory of training under {self.policy}, batch {self.batch_size}"
        table = tables.aligned([(name, _readable(size)) for name, size in rows])
        return f"{title}\n{textwrap.indent(table, '  ')}"


def memory_report(
    model: keras.Model,
    batch_size: int,
    policy: keras.DTypePolicy | str | None = None,
    *,
    optimizer: keras.optimizers.Optimizer | str | None = None,
    loss: Any = None,
    data: Any = None,
    **compile_kwargs: Any,
) -> MemoryReport:
    """Predict the peak memory of training ``model``, without training it.

    The training step is traced for the batch size on a copy of the model that takes no
    memory; nothing is executed and ``model`` stays as it is. The prediction is, on a
    GPU, the peak of TensorFlow's allocator; on a CPU, by how much the process grows.

    Most predictions for a CPU were within 15 % of what was measured for trainings of
    150 to 1,070 MB, the worst 20 %; the same training measured again differs by up to
    36 %. Of smaller ones most is ``runtime``, which varies. On a CPU without AVX-512,
    where TensorFlow leaves oneDNN off, tensors come from malloc, whose free blocks are
    not predicted: 2 to 84 % more was measured. With ``TF_ENABLE_ONEDNN_OPTS=1`` in the
    environment four were within 15 %. On an NVIDIA H100 all of 24
    predictions were within 15 %. Those of a convolutional network needed
    ``TF_CUDNN_WORKSPACE_LIMIT_IN_MB=1`` in the environment: without it cuDNN tries its
    algorithms in the first step, and the peak was 1.5 to 2.4 times as high.

    Not counted: the data set and its pipeline, metrics, code that is loaded (40 MB for
    XLA, which updates large variables of some optimizers), and what XLA
    (``jit_compile``, Keras's default on a GPU) saves or adds to a step.
    Under a ``tf.distribute`` strategy the prediction is for one replica, without
    communication buffers. Of the branches of a condition only the one with the most
    operations is counted.

    Args:
        model: A Keras model, compiled or not. A model of your own class must be
            possible to make from its config.
        batch_size: Rows of a batch, at least 1; of a micro-batch if the optimizer
            accumulates gradients.
        policy: None for the policies that the layers have, or a dtype policy, its name
            or ``"auto"``, as for `keras_mp.compile`, which all layers are put under.
            The loss is then scaled if that policy needs it.
        optimizer: An optimizer or its name. Defaults to the one ``model`` is compiled
            with, else Adam.
        loss: As for ``model.compile``. Defaults to the one ``model`` is compiled with,
            else the mean squared error.
        data: A batch ``(x, y)`` of arrays, with the dtypes and shapes to train on and
            any number of rows. Needed if the model does not tell its inputs' shapes: it
            is of your own class, or a dimension is None. By default targets are float32
            of the outputs' shape; for losses with "sparse" in their names, int32
            without the last dimension.
        **compile_kwargs: As for ``model.compile``. If the model's class overrides
            ``compile``, its own is called with these and with ``optimizer`` and
            ``loss`` if given; a compiled model for which neither a loss nor any of
            these is given stays as it is compiled.

    Returns:
        A `MemoryReport`; its ``largest_batch()`` finds the largest batch that fits.

    Raises:
        TypeError: ``model`` is not a Keras model, or ``batch_size`` not an integer.
        ValueError: ``batch_size`` is below 1; the policy is unknown or does not fit the
            model's variables; ``data`` is needed; the model cannot be copied; or the
            backend is not TensorFlow.

    Does not synchronise with the device.

    Example:

    >>> report = keras_mp.memory_report(model, 1024, "mixed_bfloat16")
    >>> report.weights  # 4 x 1 and a bias, in float32
    20
    >>> report.largest_batch(memory=2**30) > 1024
    True
    """
    batch_size = _checked(model, batch_size)
    given = {"optimizer": optimizer, "loss": loss}
    given = {name: value for name, value in given.items() if value is not None}
    state, arguments = _compiled(model, {**given, **compile_kwargs}, policy)
    recipe = trace.recipe(model)
    name = (policies.policy_of(model) if policy is None else policies.get(policy)).name

    def predict(batch_size: int) -> MemoryReport:
        def specs_for(loss: Any) -> Any:
            return trace.specs_of(model, batch_size, loss, data)

        # Keras's global state (names, seeds) belongs to a thread: a new one keeps it.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            step = thread.submit(
                trace.trace, recipe, specs_for, policy, state, arguments
            )
            parts = liveness.peak(*step.result())
        parts["runtime"] = _runtime(sum(parts.values()))
        parts = {part: parts.get(part, 0) for part in _PARTS}
        return MemoryReport(name, batch_size, **parts, _predict=predict)

    return predict(batch_size)


def _compiled(
    model: keras.Model, given: dict[str, Any], policy: keras.DTypePolicy | str | None
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return how to compile a copy of ``model``.

    Args:
        model: The model.
        given: Arguments of its ``compile``.
        policy: As for `memory_report`.

    Returns:
        Attributes to set instead of calling the model's own ``compile``, or None to
        call it; and the arguments to compile the copy with.
    """
    compiled = getattr(model, "compiled", False)
    own = trace.has_own_compile(model)
    as_it_is = compiled and not given.keys() - {"optimizer"}
    defaults = {"optimizer": "adam", "loss": "mse"}
    if compiled:
        optimizer = model.optimizer
        if policy is not None and isinstance(optimizer, LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        defaults = {"optimizer": optimizer, "loss": model.loss}
    arguments = given if own and not as_it_is else {**defaults, **given}
    for name, value in arguments.items():
        if isinstance(value, keras.optimizers.Optimizer):
            arguments[name] = trace.OptimizerConfig(value)
    return trace.compiled_state(model) if own and as_it_is else None, arguments


def _runtime(tensors: int) -> int:
    """Return what TensorFlow takes beside ``tensors`` bytes of tensors."""
    if measured_by() == "in use":
        return 0
    return _RUNTIME + round(_RUNTIME_SHARE * tensors)


def _checked(model: Any, batch_size: Any) -> int:
    """Return the batch size as an int, once it and the model are checked."""
    arguments.check_model("keras_mp.memory_report(model, batch_size)", model)
    is_number = isinstance(batch_size, numbers.Integral)
    if isinstance(batch_size, bool) or not is_number:
        raise TypeError(
            "keras_mp.memory_report(model, batch_size) needs an integer batch size. "
            f"Got {batch_size!r} of type {type(batch_size).__name__}."
        )
    if not 1 <= operator.index(batch_size) < 2**31:
        raise ValueError(
            "keras_mp.memory_report(model, batch_size): a batch needs at least 1 row, "
            f"and fewer than 2**31. Got batch_size={batch_size}."
        )
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "keras_mp.memory_report() reads TensorFlow's graph of a step. Got the "
            f"Keras backend '{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow."
        )
    return operator.index(batch_size)


def _next_size(peaks: dict[int, int], limit: int, fits: int, fails: int | None) -> int:
    """Return the next batch size to try: by a line until one fails, then halfway."""
    if fails is not None:
        return (fits + fails) // 2
    first = min(peaks)
    slope = (peaks[fits] - peaks[first]) / max(1, fits - first)
    if slope <= 0:
        return 2 * fits
    guess = int(1.01 * (fits + (limit - peaks[fits]) / slope)) + 1
    return max(fits + 1 + fits // 50, min(guess, 16 * fits))


def _free_memory() -> int:
    """Return the bytes that are free: on the first GPU, else in the system."""
    free = private.devices.free_gpu_memory()
    if free is None:
        free = hardware.proc_bytes("MemAvailable", "/proc/meminfo")
    if free is not None:
        return free
    raise ValueError(
        "MemoryReport.largest_batch() cannot tell how much memory is free on this "
        "system. Pass it in bytes as memory=."
    )


def _readable(size):
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
