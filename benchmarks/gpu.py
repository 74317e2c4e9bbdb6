"""``python -m benchmarks --device gpu``: rates of products and times of training steps.

TF32 is on or off for a whole process. TensorFlow asks whenever it launches a kernel,
but for a convolution it remembers which algorithm was the fastest, and not whether TF32
was on then. So what must not use TF32 lives in a process of its own, and takes turns
with what runs here.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import signal
from collections.abc import Callable

import keras
import tensorflow as tf

import keras_mp
from benchmarks import matmul, torch_peer
from benchmarks.devices import share_gpus
from benchmarks.steps import COMPILE, OPTIMIZERS
from benchmarks.timing import median_ratio, milliseconds, paired_rounds, summary
from benchmarks.workloads import SEED, sized
from keras_mp import hardware
from keras_mp.tables import markdown, number
from keras_mp.terminal import explain

# What is shown as a policy, and the policy of its layers.
POLICIES = {
    "float32": "float32",
    "TF32": "float32",
    "mixed_float16": "mixed_float16",
    "mixed_bfloat16": "mixed_bfloat16",
}

# Whose times are divided by whose; "float32" is the bare optimizer under that policy.
PAIRS = [
    ("float32", "bare"),
    ("keras_mp", "bare"),
    ("keras", "bare"),
    ("torch", "torch bare"),
]

# On a GPU, a step is 1 to 2 TFLOP, and a cell's candidates are to fit into 16 GB. On a
# CPU, of interest is only that the code runs.
SIZES = {
    "gpu": {
        "convolutional": {"rows": 256, "width": 256},
        "transformer": {"rows": 64, "width": 1024, "blocks": 4},
        "wide": {"rows": 4096, "width": 4096},
    },
    "cpu": {
        "convolutional": {"rows": 2, "width": 2},
        "transformer": {"rows": 2, "width": 64, "blocks": 1},
        "wide": {"rows": 2, "width": 8},
    },
}


def measure(device_kind: str, rounds: int, show: Callable[[str], None]) -> dict:
    """Measure the first GPU, or try the code at tiny sizes on the CPU.

    Args:
        device_kind: ``"gpu"`` or ``"cpu"``.
        rounds: Number of rounds.
        show: Is given a line of text for each result.

    Returns:
        Plain values: ``kind``, ``device``, its name, ``matmul``, as `matmul.measure`
        returns it, and ``steps``, a list of cells. A cell has its ``model``, ``size``,
        ``policy``, a `timing.summary` of its candidates, and ``failed``, why one did
        not run.

    Raises:
        UserError: There is no GPU.
    """
    device = _claim(device_kind, tf32=True)
    show(f"python -m benchmarks: {device}")
    cells = []
    with Float32Process(device_kind) as float32:
        products = matmul.measure(device_kind, rounds, float32.build)
        show(f"\n{matmul.table(products, device, device_kind)}\n")
        for name, size in SIZES[device_kind].items():
            for policy in POLICIES:
                float32.free()
                cells.append(
                    {"model": name, "size": size, "policy": policy}
                    | _time(_makers(name, size, policy, device_kind, float32), rounds)
                )
                show(_line(cells[-1]))
    return {"kind": device_kind, "device": device, "matmul": products, "steps": cells}


def _claim(device_kind: str, tf32: bool) -> str:
    """Set this process up for the device; return the device's name."""
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    if torch_peer.is_available():
        torch_peer.allow_tf32(tf32)
    if device_kind == "cpu":
        return hardware.cpu_name()
    names = hardware.gpu_names()
    if not names:
        raise explain(
            "python -m benchmarks --device gpu",
            "a CUDA GPU that TensorFlow sees",
            f"no GPU, only {hardware.cpu_name()}",
            "pip install 'keras-mp[gpu]' on a machine with an NVIDIA driver, or leave "
            "out --device",
        )
    share_gpus()
    return names[0]


class Float32Process:
    """A process in which TF32 is off; it builds steps, and makes one when asked to.

    Asking takes some 0.02 ms, which the time of a step includes.
    """

    def __init__(self, device_kind: str):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, device_kind), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pipe.close()
        self._process.join()

    def build(self, function: Callable, *arguments, **options) -> Callable[[], None]:
        """As ``function(*arguments, **options)``, which returns a step, but there."""
        made = self._ask("build", functools.partial(function, *arguments, **options))
        return functools.partial(self._ask, "step", made)

    def free(self) -> None:
        """Forget the steps, there and here."""
        _free()
        self._ask("free", None)

    def _ask(self, action, value):
        try:
            self._pipe.send((action, value))
            answer, error = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError("The process without TF32 has ended.") from None
        if error:
            raise RuntimeError(error)
        return answer


def _serve(pipe, device_kind: str) -> None:
    """Do what is asked through the pipe until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _claim(device_kind, tf32=False)
    steps = []
    while True:
        try:
            action, value = pipe.recv()
        except EOFError:
            return
        answer = error = None
        try:
            if action == "build":
                steps.append(value())
                answer = len(steps) - 1
            elif action == "step":
                steps[value]()
            else:
                steps.clear()
                _free()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        pipe.send((answer, error))


def _free() -> None:
    keras.backend.clear_session()
    gc.collect()
    if torch_peer.has_gpu():
        import torch

        torch.cuda.empty_cache()


def _makers(name, size, policy, device_kind, float32) -> dict[str, Callable]:
    """What makes each candidate of a cell; all train with Adam."""
    place = float32.build if policy == "float32" else _here
    dtype_policy = POLICIES[policy]
    makers = {
        candidate: functools.partial(
            place, keras_step, name, size, candidate, dtype_policy
        )
        for candidate in COMPILE
    }
    torch_device = {"gpu": "cuda", "cpu": "cpu"}[device_kind]
    if torch_peer.has_gpu() or device_kind == "cpu" and torch_peer.is_available():
        for candidate, bare in (("torch bare", True), ("torch", False)):
            makers[candidate] = functools.partial(
                place,
                torch_peer.torch_step,
                name,
                "Adam",
                dtype_policy,
                torch_device,
                bare=bare,
                **size,
            )
    if policy != "float32":
        makers["float32"] = functools.partial(
            float32.build, keras_step, name, size, "bare", "float32"
        )
    return makers


def _here(function, *arguments, **options):
    return function(*arguments, **options)


def _time(makers, rounds) -> dict:
    candidates, failed = matmul.working(makers)
    seconds = paired_rounds(candidates, rounds)
    return summary([seconds], PAIRS) | {"failed": failed}


def keras_step(
    name: str, size: dict[str, int], candidate: str, policy: str
) -> Callable[[], None]:
    """Return a function that makes one training step and waits for its end.

    Its batch lies in the device's memory: what feeds a model is not measured here.
    """
    keras.utils.set_random_seed(SEED)
    workload = sized(name, **size)
    with keras_mp.policy_scope(policy):
        model = workload.build()
        COMPILE[candidate](
            model, OPTIMIZERS["Adam"](), loss=workload.loss, jit_compile=False
        )
        model.optimizer.build(model.trainable_variables)
    batch = tuple(map(tf.constant, workload.batch(workload.rows)))
    train = tf.function(model.train_step, autograph=False)

    def step():
        float(train(batch)["loss"])
        # The loss is known before the weights are.
        model.optimizer.iterations.numpy()

    return step


def table(results: dict) -> str:
    """Both tables as Markdown, and below them what could not be measured."""
    head = [
        f"step on {results['device']}",
        "bare, ms",
        "speed-up",
        "keras_mp / bare",
        "Keras's / bare",
        "torch, ms",
        "torch.amp / torch",
    ]
    cells = results["steps"]
    parts = [
        matmul.table(results["matmul"], results["device"], results["kind"]),
        markdown(head, map(_row, cells)),
        "Speed-up: of the bare optimizer over the same in float32 without TF32.",
    ]
    failures = [
        f"- {_title(cell)}, {name}: {why}"
        for cell in cells
        for name, why in cell["failed"].items()
    ] + [
        f"- product of n = {result['size']}, {name}: {why}"
        for result in results["matmul"]
        for name, why in result["failed"].items()
    ]
    if failures:
        parts.append("Could not be measured:\n\n" + "\n".join(failures))
    return "\n\n".join(parts)


def _row(cell) -> list[str]:
    return [
        _title(cell),
        number(milliseconds(cell, "bare")),
        number(_speed_up(cell)),
        number(median_ratio(cell, "keras_mp", "bare")),
        number(median_ratio(cell, "keras", "bare")),
        number(milliseconds(cell, "torch bare")),
        number(median_ratio(cell, "torch", "torch bare")),
    ]


def _line(cell) -> str:
    """A cell as text."""
    title, bare, _, ours, kerass, *_ = (entry or "-" for entry in _row(cell))
    return f"  {title:80} {bare} ms bare; keras_mp x{ours}, Keras x{kerass}"


def _title(cell) -> str:
    size = ", ".join(f"{name} {value}" for name, value in cell["size"].items())
    return f"{cell['model']} ({size}), {cell['policy']}"


def _speed_up(cell) -> float | None:
    if cell["policy"] == "float32":
        return 1.0 if "bare" in cell["seconds"] else None
    return median_ratio(cell, "float32", "bare")
