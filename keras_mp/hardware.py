"""Which low precision this machine's processors are fast in."""

import itertools
import os
import pathlib
import platform
from typing import Any, NamedTuple

#: Compute capability of each GPU as (major, minor); None where it is unknown.
Capabilities = list[tuple[int, int] | None]

#: The policies under which matrices are multiplied in 16 bits.
MIXED_POLICIES = ("mixed_bfloat16", "mixed_float16")

#: The first compute capabilities whose tensor cores compute in bfloat16 and float16.
BFLOAT16_GPU, FLOAT16_GPU = (8, 0), (7, 0)

#: Flags in /proc/cpuinfo of processors that multiply bfloat16 matrices in hardware.
BFLOAT16_CPU_FLAGS = ("avx512_bf16", "amx_bf16")
#: Flags of processors that multiply float16 matrices in hardware.
FLOAT16_CPU_FLAGS = ("avx512_fp16", "amx_fp16")

# The values of ONEDNN_MAX_CPU_ISA, the oldest first, and the first value with which
# oneDNN uses the instructions of each flag:
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
_ISAS = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
    "AVX512_CORE_BF16",
    "AVX512_CORE_FP16",
    "AVX512_CORE_AMX",
    "AVX512_CORE_AMX_FP16",
)
_USED_FROM = {
    "avx512_bf16": "AVX512_CORE_BF16",
    "avx512_fp16": "AVX512_CORE_FP16",
    "amx_bf16": "AVX512_CORE_AMX",
    "amx_fp16": "AVX512_CORE_AMX_FP16",
}


class Recommendation(NamedTuple):
    """A policy for this machine.

    Attributes:
        policy: Name of a dtype policy: ``"mixed_bfloat16"``, ``"mixed_float16"`` or
            ``"float32"``.
        reason: One sentence that says why, naming the hardware.
    """

    policy: str
    reason: str


def recommend() -> Recommendation:
    """Return the policy to train under on this machine's fastest devices.

    bfloat16 on TPUs, on GPUs of compute capability 8.0 (Ampere) and later and on CPUs
    with AVX512_BF16 or AMX; float16 on GPUs of capability 7.0 to 7.5 (Volta, Turing),
    whose tensor cores have float16 only; float32 elsewhere. Of several GPUs the oldest
    decides. The capabilities are those of NVIDIA's CUDA C++ Programming Guide.

    Starts TensorFlow's devices if need be, and does not wait for their work.

    Returns:
        A `Recommendation`: the policy's name and the reason.

    Example:

    >>> recommend().policy in ("mixed_bfloat16", "mixed_float16", "float32")
    True
    """
    return choose(gpu_capabilities(), has_tpu(), cpu_flags() - hidden_cpu_flags())


def native_policies() -> tuple[str, ...]:
    """Return the mixed policies whose dtype this machine multiplies in hardware.

    The others are emulated: the numbers are right, and steps take longer. Starts
    TensorFlow's devices if need be, and does not wait for their work.

    Returns:
        A tuple with ``"mixed_bfloat16"``, ``"mixed_float16"``, both or neither.

    Example:

    >>> set(native_policies()) <= {"mixed_bfloat16", "mixed_float16"}
    True
    """
    return native(gpu_capabilities(), has_tpu(), cpu_flags() - hidden_cpu_flags())


def native(capabilities: Capabilities, tpu: bool, flags: set[str]) -> tuple[str, ...]:
    """Return the mixed policies whose dtype a described machine has hardware for.

    Args:
        capabilities: As for `choose`.
        tpu: As for `choose`.
        flags: As for `choose`.
    """
    if tpu:
        return ("mixed_bfloat16",)
    if capabilities:
        oldest = _oldest(capabilities) or (0, 0)
        has = oldest >= BFLOAT16_GPU, oldest >= FLOAT16_GPU
    else:
        known = BFLOAT16_CPU_FLAGS, FLOAT16_CPU_FLAGS
        has = tuple(bool(flags.intersection(each)) for each in known)
    return tuple(itertools.compress(MIXED_POLICIES, has))


def choose(capabilities: Capabilities, tpu: bool, flags: set[str]) -> Recommendation:
    """Return the `Recommendation` for a described machine.

    Args:
        capabilities: List with each GPU's compute capability as a (major, minor)
            tuple, or None where it is unknown (not an NVIDIA GPU).
        tpu: Whether there is a TPU.
        flags: Set of the CPU's feature flags.
    """
    if tpu:
        return Recommendation("mixed_bfloat16", "TPUs multiply matrices in bfloat16.")
    if capabilities:
        return _for_gpus(capabilities)
    for flag in BFLOAT16_CPU_FLAGS:
        if flag in flags:
            return Recommendation(
                "mixed_bfloat16", f"The CPU multiplies bfloat16 in hardware ({flag})."
            )
    return Recommendation(
        "float32",
        "There is no GPU or TPU, and the CPU shows neither AVX512_BF16 nor AMX: "
        "lower precision would be emulated and slower.",
    )


def _for_gpus(capabilities: Capabilities) -> Recommendation:
    oldest = _oldest(capabilities)
    if oldest is None:
        return Recommendation(
            "float32", "A GPU reports no compute capability; its precision is unknown."
        )
    shown = ".".join(map(str, oldest))
    if oldest >= BFLOAT16_GPU:
        return Recommendation(
            "mixed_bfloat16",
            f"The GPU's tensor cores compute in bfloat16 (compute capability {shown}, "
            "Ampere or later).",
        )
    if oldest >= FLOAT16_GPU:
        return Recommendation(
            "mixed_float16",
            f"The GPU's tensor cores compute in float16 but not in bfloat16 (compute "
            f"capability {shown}, Volta or Turing).",
        )
    return Recommendation(
        "float32", f"The GPU has no tensor cores (compute capability {shown})."
    )


def _oldest(capabilities: Capabilities) -> tuple[int, int] | None:
    """Return the lowest capability; None if that of one GPU is unknown."""
    known = [each for each in capabilities if each is not None]
    return min(known) if len(known) == len(capabilities) else None


def gpu_capabilities() -> Capabilities:
    """Return each visible GPU's compute capability as (major, minor), or None."""
    return [details.get("compute_capability") for details in _gpu_details()]


def gpu_names() -> list[str]:
    """Return each visible GPU's name; ``"GPU"`` where the driver hides it."""
    return [details.get("device_name", "GPU") for details in _gpu_details()]


def _gpu_details() -> list[dict[str, Any]]:
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    return list(map(tf.config.experimental.get_device_details, gpus))


def has_tpu() -> bool:
    """Return whether TensorFlow sees a TPU."""
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("TPU"))


def cpu_flags(cpuinfo: str | os.PathLike[str] = "/proc/cpuinfo") -> set[str]:
    """Return the CPU's feature flags as a set; empty where the system hides them.

    Args:
        cpuinfo: File in the format of Linux's /proc/cpuinfo.
    """
    return set(_field("flags", cpuinfo).split())


def hidden_cpu_flags() -> set[str]:
    """Return the flags of instructions that ``ONEDNN_MAX_CPU_ISA`` forbids, as a set.

    oneDNN, with which TensorFlow multiplies matrices, reads this environment variable.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in _ISAS:
        return set()
    newer = _ISAS[_ISAS.index(limit) + 1 :]
    return {flag for flag, first in _USED_FROM.items() if first in newer}


def cpu_name(cpuinfo: str | os.PathLike[str] = "/proc/cpuinfo") -> str:
    """Return the processor's name; ``"CPU"`` where the system hides it.

    Args:
        cpuinfo: File in the format of Linux's /proc/cpuinfo.
    """
    return _field("model name", cpuinfo) or platform.processor() or "CPU"


def proc_bytes(field: str, path: str | os.PathLike[str]) -> int | None:
    """Return a size from a file of Linux's /proc, in bytes; None if it is not there.

    Args:
        field: Its name, such as ``"VmHWM"``, the peak of a process's resident memory.
        path: The file: ``/proc/self/status`` or ``/proc/meminfo``, with sizes in kB.
    """
    value = _field(field, path)
    return int(value.split()[0]) * 1024 if value else None


def _field(field: str, path: str | os.PathLike[str]) -> str:
    """Return the first value of a field in a file of /proc, or an empty string."""
    file = pathlib.Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    values = [line.partition(":")[2] for line in lines if line.startswith(field)]
    return values[0].strip() if values else ""
