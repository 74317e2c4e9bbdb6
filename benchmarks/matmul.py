"""Rates of matrix products, against what the device's maker promises."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Callable

import tensorflow as tf

from benchmarks.timing import paired_rounds
from keras_mp.tables import markdown, number

# What each precision's inputs are; TF32 is float32 that TensorFlow may round to TF32.
DTYPES = {
    "float32": "float32",
    "TF32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}

# Matrices are n x n. 4097 is there to be bad: tensor cores want rows of 16-bit values
# that begin at multiples of 16 bytes.
SIZES = {"gpu": (2048, 4096, 4097, 8192), "cpu": (64, 65)}

# A call makes at least this many floating-point operations, so that what it takes to
# launch it and to wait for it does not count.
OPERATIONS = {"gpu": 4e12, "cpu": 1e6}

# Dense peaks in TFLOP/s with sums in float32, as TensorFlow makes them, by what a
# device calls itself. From NVIDIA's data sheets, halved where they are given "with
# sparsity", and for GeForce from the appendices of the GA102 and Ada whitepapers. Names
# must match whole: A10G, RTX 3090 Ti, H100 NVL and MIG slices have other peaks.
_PEAKS = {
    r"V100-SXM2-(16|32)GB": {"float32": 15.7, "float16": 125},
    r"V100-PCIE-(16|32)GB": {"float32": 14, "float16": 112},
    r"T4": {"float32": 8.1, "float16": 65},
    r"A100-(SXM4|PCIE)-(40|80)GB|A100 80GB PCIe": {
        "float32": 19.5,
        "TF32": 156,
        "float16": 312,
        "bfloat16": 312,
    },
    r"A10": {"float32": 31.2, "TF32": 62.5, "float16": 125, "bfloat16": 125},
    r"L4": {"float32": 30.3, "TF32": 60, "float16": 121, "bfloat16": 121},
    r"RTX 3090": {"float32": 35.6, "TF32": 35.6, "float16": 71, "bfloat16": 71},
    r"RTX 4090": {"float32": 82.6, "TF32": 82.6, "float16": 165, "bfloat16": 165},
    r"H100 PCIe": {"float32": 51, "TF32": 378, "float16": 756, "bfloat16": 756},
    r"H100 80GB HBM3|H200": {
        "float32": 67,
        "TF32": 495,
        "float16": 989,
        "bfloat16": 989,
    },
}

# Cores without tensor units multiply 16-bit inputs and sum in float32 no faster than
# they multiply float32; tensor cores are 2 (GeForce) to 16 times (A100) as fast.
_SURELY_ON, _SURELY_OFF = 1.5, 1.2


def measure(device_kind: str, rounds: int, build_float32: Callable) -> list[dict]:
    """Time products in each precision, which take turns in every round.

    Args:
        device_kind: ``"gpu"`` or ``"cpu"``.
        rounds: Number of rounds.
        build_float32: Makes the float32 candidate: called with `product_step` and its
            arguments, it returns a function as `product_step` does, which runs where
            TF32 is off. All others run here, where it is on.

    Returns:
        For each size: ``size``, ``products`` in a call, ``rates``, the median TFLOP/s
        by precision, and ``failed``, why a precision has none.
    """
    results = []
    for size in SIZES[device_kind]:
        products = math.ceil(OPERATIONS[device_kind] / flops(size))
        makers = {
            name: functools.partial(product_step, dtype, size, products)
            for name, dtype in DTYPES.items()
        }
        makers["float32"] = functools.partial(
            build_float32, product_step, "float32", size, products
        )
        candidates, failed = working(makers)
        seconds = paired_rounds(candidates, rounds)
        results.append(
            {
                "size": size,
                "products": products,
                "rates": {
                    name: rate(size, products, times) for name, times in seconds.items()
                },
                "failed": failed,
            }
        )
    return results


def working(
    makers: dict[str, Callable[[], Callable]],
) -> tuple[dict[str, Callable], dict[str, str]]:
    """Make each candidate and call it once.

    A device may lack a precision or have too little memory for one candidate; the
    others are measured all the same.

    Returns:
        The candidates that ran, and for each of the others, why it did not.
    """
    candidates, failed = {}, {}
    for name, make in makers.items():
        try:
            candidate = make()
            candidate()
        except (tf.errors.OpError, RuntimeError, ImportError) as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            candidates[name] = candidate
    return candidates, failed


def product_step(dtype: str, size: int, products: int) -> Callable[[], None]:
    """Return a function that multiplies (size, size) matrices and waits for the end.

    It makes ``products`` products in one graph, each of the result of the last one.
    """
    # This variance keeps the results' size the same from product to product.
    left, right = (
        tf.cast(tf.random.normal((size, size), stddev=size**-0.5), dtype) for _ in "lr"
    )

    @tf.function(autograph=False)
    def chain(left, right):
        for _ in range(products):
            right = tf.linalg.matmul(left, right)
        return right[0, 0]

    def step():
        chain(left, right).numpy()

    return step


def flops(size: int) -> int:
    """Multiplications and additions in a product of (size, size) matrices."""
    return 2 * size**3


def rate(size: int, products: int, seconds: list[float]) -> float:
    """The median rate in TFLOP/s of calls that took ``seconds`` each."""
    return flops(size) * products / statistics.median(seconds) / 1e12


def peaks(device: str) -> dict[str, float]:
    """Documented dense TFLOP/s by precision; empty for a device that is not known.

    Example:

    >>> peaks("Tesla T4")
    {'float32': 8.1, 'float16': 65}
    """
    model = re.sub(r"^((NVIDIA|Tesla|GeForce) )*", "", device)
    matches = (known for name, known in _PEAKS.items() if re.fullmatch(name, model))
    return next(matches, {})


def tensor_cores(rate: float, float32_rate: float) -> str:
    """Whether a GPU's tensor cores were at work: ``"on"``, ``"off"`` or ``"unknown"``.

    Args:
        rate: Rate reached in a precision that tensor cores may know.
        float32_rate: Rate reached at the same size in float32 without TF32.

    Example:

    >>> tensor_cores(231.0, 14.3), tensor_cores(14.5, 14.3)
    ('on', 'off')
    """
    if rate >= _SURELY_ON * float32_rate:
        return "on"
    return "off" if rate <= _SURELY_OFF * float32_rate else "unknown"


def table(results: list[dict], device: str, device_kind: str) -> str:
    """The rates as Markdown, beside the device's limits where they are documented."""
    head = ["n, precision", "TFLOP/s", "limit", "share of it", "tensor cores"]
    limits = peaks(device)
    rows = []
    for result in results:
        rates = result["rates"]
        for name, reached in rates.items():
            limit = limits.get(name)
            judged = device_kind == "gpu" and name != "float32" and "float32" in rates
            rows.append(
                [
                    f"{result['size']}, {name}",
                    f"{reached:.3g}",
                    number(limit, "g"),
                    number(limit and reached / limit, ".0%"),
                    tensor_cores(reached, rates["float32"]) if judged else None,
                ]
            )
    return markdown(head, rows)
