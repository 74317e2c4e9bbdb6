"""The sections of the benchmarks, and what they leave: tables and a JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable

from benchmarks import (
    casts,
    gpu,
    islands,
    memory,
    monitors,
    optimizers,
    stages,
    starts,
    traffic,
)
from benchmarks.devices import share_gpus
from keras_mp import hardware
from keras_mp.version import __version__

#: Each section: what measures, and what makes a table of it.
SECTIONS = {
    "optimizers": (optimizers.measure, optimizers.table),
    "stages": (stages.measure, stages.table),
    "starts": (starts.measure, starts.table),
    "casts": (casts.measure, casts.table),
    "islands": (islands.measure, islands.table),
    "monitors": (monitors.measure, monitors.table),
    "memory": (
        lambda models, policy, rounds, show: memory.measure(models, show),
        memory.table,
    ),
    "distribution": (
        lambda models, policy, rounds, show: traffic.measure(rounds, show),
        traffic.table,
    ),
    "gpu": (
        lambda models, policy, rounds, show: gpu.measure("gpu", rounds, show),
        gpu.table,
    ),
}

#: Those of a run on the CPU.
ON_CPU = [section for section in SECTIONS if section != "gpu"]

LIBRARIES = ("tensorflow", "tensorflow-cpu", "keras", "torch", "jax", "optax", "jmp")


def run(
    sections: list[str],
    models: list[str],
    policy: str | None,
    rounds: int,
    show: Callable[[str], None],
) -> dict:
    """Measure the sections; return plain values by section."""
    share_gpus()
    results = {"environment": environment(), "policy": policy, "rounds": rounds}
    for section in sections:
        measure, _ = SECTIONS[section]
        results[section] = measure(models, policy, rounds, show)
    return results


def table(section: str, results: dict) -> str:
    """The table of one section, as Markdown."""
    _, make_table = SECTIONS[section]
    return make_table(results[section])


def document(section: str, results: dict) -> str:
    """The table of one section, and the machine that it was measured on."""
    machine = heading(results["environment"])
    return f"{table(section, results)}\n\nMeasured on {machine}."


def environment() -> dict:
    """The machine and the versions, as plain values."""
    versions = {"keras_mp": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "gpus": hardware.gpu_names(),
        "cpu": hardware.cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "versions": versions,
    }


def heading(machine: dict) -> str:
    """The machine and the versions in a sentence."""
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    devices = ", ".join([*machine.get("gpus", ()), machine["cpu"]])
    return f"{devices}, {machine['cores']} cores; {versions}"


def write(path: pathlib.Path, results: dict) -> None:
    """Write the results as JSON."""
    path.write_text(json.dumps(results, indent=1) + "\n")
