"""Rates of matrix products: the arithmetic, the limits, and what is read from them."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import matmul


def test_a_product_has_a_multiplication_and_an_addition_for_each_triple():
    assert matmul.flops(1) == 2
    assert matmul.flops(1000) == 2_000_000_000


def test_the_rate_is_that_of_the_median_call():
    # 50 products of 2e9 operations, in 0.1 s: 1e12 a second.
    assert matmul.rate(1000, 50, [0.1, 0.05, 7.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_step_makes_the_products_it_says(dtype, monkeypatch):
    made = []
    product = tf.linalg.matmul

    def counted(left, right):
        made.append((left.shape, left.dtype, right.dtype))
        return product(left, right)

    monkeypatch.setattr(tf.linalg, "matmul", counted)
    matmul.product_step(dtype, 16, 5)()
    assert made == [((16, 16), dtype, dtype)] * 5


def test_values_neither_vanish_nor_overflow_in_a_long_chain(monkeypatch):
    results = []
    product = tf.linalg.matmul

    def kept(left, right):
        results.append(product(left, right))
        return results[-1]

    monkeypatch.setattr(tf.linalg, "matmul", kept)
    monkeypatch.setattr(tf, "function", lambda **_: lambda function: function)
    products = round(matmul.OPERATIONS["gpu"] / matmul.flops(2048))
    matmul.product_step("float32", 256, products)()
    size = np.abs(results[-1]).mean()
    assert np.finfo("float16").tiny < size < np.finfo("float16").max / 1000


def test_every_precision_is_measured_at_every_size(monkeypatch):
    def paired_rounds(candidates, rounds):
        assert rounds == 2
        return {name: [0.5, 0.25, 0.125] for name in candidates}

    monkeypatch.setattr(matmul, "paired_rounds", paired_rounds)
    results = matmul.measure("cpu", 2, lambda function, *args: function(*args))
    assert [result["size"] for result in results] == [64, 65]
    for result in results:
        assert list(result["rates"]) == list(matmul.DTYPES)
        assert not result["failed"]
        operations = 2 * result["size"] ** 3 * result["products"]
        assert set(result["rates"].values()) == {operations / 0.25 / 1e12}


def test_a_precision_that_fails_is_named_and_the_others_are_measured():
    def build(function, *arguments):
        raise RuntimeError("no such kernel\nand more")

    result = matmul.measure("cpu", 1, build)[0]
    assert result["failed"] == {"float32": "RuntimeError: no such kernel"}
    assert list(result["rates"]) == ["TF32", "float16", "bfloat16"]
    text = matmul.table([result], "Tesla T4", "gpu")
    assert all(line.endswith("– |") for line in text.splitlines()[2:])


def test_a_candidate_that_fails_when_called_is_left_out():
    def broken():
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    def fine():
        pass

    candidates, failed = matmul.working({"a": lambda: broken, "b": lambda: fine})
    assert candidates == {"b": fine}
    assert failed == {"a": "ResourceExhaustedError: out of memory"}


@pytest.mark.parametrize(
    "device, float32, float16",
    [
        ("Tesla V100-SXM2-16GB", 15.7, 125),
        ("Tesla T4", 8.1, 65),
        ("NVIDIA A100-SXM4-40GB", 19.5, 312),
        ("A100-SXM4-40GB", 19.5, 312),
        ("NVIDIA A100 80GB PCIe", 19.5, 312),
        ("NVIDIA A10", 31.2, 125),
        ("NVIDIA L4", 30.3, 121),
        ("NVIDIA GeForce RTX 4090", 82.6, 165),
        ("NVIDIA H100 PCIe", 51, 756),
        ("NVIDIA H100 80GB HBM3", 67, 989),
        ("NVIDIA H200", 67, 989),
    ],
)
def test_documented_devices_have_limits(device, float32, float16):
    limits = matmul.peaks(device)
    assert (limits["float32"], limits["float16"]) == (float32, float16)


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G",
        "NVIDIA L40S",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 NVL",
        "Tesla V100S-PCIE-32GB",
        "AMD EPYC 7B13",
    ],
)
def test_other_devices_have_none(device):
    assert matmul.peaks(device) == {}


def test_devices_before_ampere_have_no_limit_in_what_their_tensor_cores_lack():
    for device in ("Tesla T4", "Tesla V100-PCIE-16GB"):
        assert set(matmul.peaks(device)) == {"float32", "float16"}


@pytest.mark.parametrize(
    "rate, float32_rate, verdict",
    [
        (231.0, 14.3, "on"),  # A100
        (120.0, 70.0, "on"),  # GeForce: at most twice as fast
        (14.5, 14.3, "off"),
        (2.0, 14.3, "off"),
        (19.0, 14.3, "unknown"),
    ],
)
def test_tensor_cores_show_in_the_rate(rate, float32_rate, verdict):
    assert matmul.tensor_cores(rate, float32_rate) == verdict


def result_of(size, **rates):
    return {"size": size, "products": 1, "rates": rates, "failed": {}}


def test_the_table_shows_the_share_of_the_limit_and_the_verdict():
    results = [result_of(4096, float32=15.6, TF32=78.0, float16=240.0)]
    assert matmul.table(results, "NVIDIA A100-SXM4-40GB", "gpu").splitlines() == [
        "| n, precision | TFLOP/s | limit | share of it | tensor cores |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 4096, float32 | 15.6 | 19.5 | 80% | – |",
        "| 4096, TF32 | 78 | 156 | 50% | on |",
        "| 4096, float16 | 240 | 312 | 77% | on |",
    ]


def test_the_table_of_another_device_has_no_limit_and_that_of_a_cpu_no_verdict():
    results = [result_of(4096, float32=1.0, float16=2.0)]
    assert "| 4096, float16 | 2 | – | – | on |" in matmul.table(results, "?", "gpu")
    assert "| 4096, float16 | 2 | – | – | – |" in matmul.table(results, "?", "cpu")
