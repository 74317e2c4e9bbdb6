"""The GPU's part of the benchmark, at tiny sizes on the CPU."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from support.spawned import forked_instead

from benchmarks import gpu, matmul, timing, torch_peer
from keras_mp import hardware
from keras_mp.terminal import UserError

TINY = gpu.SIZES["cpu"]["wide"]


@pytest.fixture(autouse=True, scope="module")
def forked():
    """Let processes start without an import of TensorFlow."""
    with forked_instead():
        yield


@pytest.fixture(scope="module")
def float32():
    with gpu.Float32Process("cpu") as process:
        yield process


def step_that_reports(path):
    """Where a step ran, and whether TF32 was on there."""

    def step():
        on = tf.config.experimental.tensor_float_32_execution_enabled()
        path.write_text(f"{os.getpid()} {on}")

    return step


def step_that_fails():
    def step():
        raise ValueError("bad shape")

    return step


def test_float32_runs_elsewhere_without_tf32(float32, tmp_path):
    path = tmp_path / "seen"
    step = float32.build(step_that_reports, path)
    assert not path.exists()
    assert step() is None
    process, on = path.read_text().split()
    assert int(process) != os.getpid()
    assert on == "False"
    assert tf.config.experimental.tensor_float_32_execution_enabled()


def test_what_fails_there_fails_here_and_the_process_lives_on(float32, tmp_path):
    step = float32.build(step_that_fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ValueError: bad shape"):
            step()
    float32.build(step_that_reports, tmp_path / "seen")()


def test_steps_are_forgotten_when_freed(float32, tmp_path):
    step = float32.build(step_that_reports, tmp_path / "seen")
    float32.free()
    with pytest.raises(RuntimeError, match="IndexError"):
        step()


@pytest.mark.long
@pytest.mark.parametrize("name", gpu.SIZES["cpu"])
def test_a_step_trains(name):
    step = gpu.keras_step(name, gpu.SIZES["cpu"][name], "keras_mp", "mixed_float16")
    closure = dict(zip(step.__code__.co_freevars, step.__closure__, strict=True))
    model = closure["model"].cell_contents
    before = [np.array(weight) for weight in model.trainable_weights]
    step()
    step()
    assert model.optimizer.stats()["steps"] == 2
    changed = zip(before, model.trainable_weights, strict=True)
    assert any(np.any(old != np.array(new)) for old, new in changed)


@pytest.mark.long
def test_everything_is_measured(monkeypatch):
    monkeypatch.setitem(gpu.SIZES, "cpu", {"wide": TINY})
    monkeypatch.setitem(matmul.SIZES, "cpu", (64,))
    policies = {"float32": "float32", "mixed_bfloat16": "mixed_bfloat16"}
    monkeypatch.setattr(gpu, "POLICIES", policies)
    lines = []
    results = gpu.measure("cpu", 2, lines.append)
    assert json.loads(json.dumps(results)) == results
    everyone = {"bare", "keras", "keras_mp"}
    if torch_peer.is_available():
        everyone |= {"torch", "torch bare"}
    full, mixed = results["steps"]
    assert full["policy"] == "float32" and set(full["seconds"]) == everyone
    assert mixed["policy"] == "mixed_bfloat16"
    assert set(mixed["seconds"]) == everyone | {"float32"}
    for cell in (full, mixed):
        assert not cell["failed"]
        assert min(cell["seconds"].values()) > 0
        assert {"keras_mp / bare", "keras / bare"} <= set(cell["ratios"])
    assert list(results["matmul"][0]["rates"]) == list(matmul.DTYPES)
    assert "wide (rows 2, width 8), mixed_bfloat16" in lines[-1]
    assert "wide (rows 2, width 8), mixed_bfloat16" in gpu.table(results)


def cell(policy, failed=None, **seconds):
    times = {name.replace("_bare", " bare"): value for name, value in seconds.items()}
    size = {"rows": 8, "width": 4}
    return {
        "model": "wide",
        "size": size,
        "policy": policy,
        "failed": failed or {},
    } | timing.summary([times], gpu.PAIRS)


def test_the_table_pairs_what_was_timed_in_one_round():
    full = cell("float32", bare=[0.04, 0.08], keras=[0.06, 0.12], keras_mp=[0.05, 0.1])
    mixed = cell(
        "mixed_float16",
        {"keras": "OpError: none"},
        float32=[0.04, 0.08],
        bare=[0.01, 0.02],
        keras_mp=[0.011, 0.022],
        torch=[0.03, 0.06],
        torch_bare=[0.02, 0.04],
    )
    product = {"size": 64, "products": 1, "rates": {}}
    results = {
        "kind": "gpu",
        "device": "Tesla T4",
        "matmul": [product | {"failed": {"bfloat16": "OpError: no kernel"}}],
        "steps": [full, mixed],
    }
    text = gpu.table(results)
    assert "| step on Tesla T4 | bare, ms | speed-up |" in text
    assert "float32 | 60.00 | 1.00 | 1.25 | 1.50 | – | – |" in text
    assert "mixed_float16 | 15.00 | 4.00 | 1.10 | – | 30.00 | 1.50 |" in text
    assert "- wide (rows 8, width 4), mixed_float16, keras: OpError: none" in text
    assert "- product of n = 64, bfloat16: OpError: no kernel" in text


def test_a_cell_in_which_nothing_runs_is_shown_with_dashes():
    results = {"kind": "gpu", "device": "?", "matmul": [], "steps": [cell("float32")]}
    assert "| – | – | – | – | – | – |" in gpu.table(results)


def test_a_machine_without_a_gpu_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(hardware, "gpu_names", lambda: [])
    with pytest.raises(UserError, match="a CUDA GPU") as error:
        gpu.measure("gpu", 1, print)
    for part in ("--device gpu", "it got:     no GPU", "pip install", "leave out"):
        assert part in str(error.value)


def test_a_gpu_grows_its_memory_and_says_its_name(monkeypatch):
    grown = {}
    monkeypatch.setattr(hardware, "gpu_names", lambda: ["X", "Y"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grown.__setitem__)
    assert gpu._claim("gpu", tf32=True) == "X"
    assert grown == {"a": True, "b": True}
