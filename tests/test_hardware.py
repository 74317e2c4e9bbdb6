"""Which policy `keras_mp.hardware` recommends, for described machines and this one."""

import pytest

from keras_mp import hardware

BF16_FLAGS = {"avx2", "avx512_bf16"}


@pytest.mark.parametrize(
    ("capabilities", "tpu", "flags", "policy", "named"),
    [
        ([], True, set(), "mixed_bfloat16", "TPU"),
        ([(7, 0)], True, set(), "mixed_bfloat16", "TPU"),
        ([(9, 0)], False, set(), "mixed_bfloat16", "9.0"),
        ([(8, 0)], False, set(), "mixed_bfloat16", "8.0"),
        ([(10, 0)], False, set(), "mixed_bfloat16", "10.0"),
        ([(7, 5)], False, set(), "mixed_float16", "7.5"),
        ([(7, 0)], False, set(), "mixed_float16", "7.0"),
        ([(6, 1)], False, set(), "float32", "6.1"),
        ([(9, 0), (7, 5)], False, set(), "mixed_float16", "7.5"),
        ([(8, 6), (10, 0), (9, 0)], False, set(), "mixed_bfloat16", "8.6"),
        ([(9, 0), (6, 0)], False, set(), "float32", "6.0"),
        ([None], False, set(), "float32", "unknown"),
        ([(9, 0), None], False, set(), "float32", "unknown"),
        # A GPU decides, whatever the CPU beside it knows.
        ([(6, 0)], False, BF16_FLAGS, "float32", "6.0"),
        ([], False, BF16_FLAGS, "mixed_bfloat16", "avx512_bf16"),
        ([], False, {"avx2", "amx_bf16"}, "mixed_bfloat16", "amx_bf16"),
        ([], False, {"avx2", "avx512f"}, "float32", "AVX512_BF16"),
        ([], False, set(), "float32", "AMX"),
    ],
)
def test_choice_for_a_described_machine(capabilities, tpu, flags, policy, named):
    choice = hardware.choose(capabilities, tpu, flags)
    assert choice.policy == policy
    assert named in choice.reason


BOTH = ("mixed_bfloat16", "mixed_float16")


@pytest.mark.parametrize(
    ("capabilities", "tpu", "flags", "expected"),
    [
        ([], True, set(), BOTH[:1]),
        ([(9, 0), (8, 0)], False, set(), BOTH),
        ([(9, 0), (7, 5)], False, set(), BOTH[1:]),
        ([(6, 1)], False, BF16_FLAGS, ()),
        ([(9, 0), None], False, set(), ()),
        ([], False, BF16_FLAGS, BOTH[:1]),
        ([], False, {"amx_bf16", "avx512_fp16"}, BOTH),
        ([], False, {"avx2"}, ()),
    ],
)
def test_what_is_native_to_a_described_machine(capabilities, tpu, flags, expected):
    assert hardware.native(capabilities, tpu, flags) == expected


@pytest.mark.parametrize(
    ("limit", "policy"),
    [
        ("AVX2", "float32"),
        ("avx512_core", "float32"),
        ("AVX512_CORE_BF16", "mixed_bfloat16"),
        ("DEFAULT", "mixed_bfloat16"),
    ],
)
def test_instructions_that_onednn_is_not_to_use_do_not_count(
    monkeypatch, limit, policy
):
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: [])
    monkeypatch.setattr(hardware, "has_tpu", lambda: False)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: BF16_FLAGS)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert hardware.recommend().policy == policy
    assert hardware.native_policies() == tuple({policy} - {"float32"})


def test_cpu_flags_are_those_of_the_file(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\n"
        "flags\t\t: fpu avx512_bf16 amx_bf16\n"
        "bugs\t\t: spectre_v1\n\n"
        "processor\t: 1\n"
        "flags\t\t: fpu avx512_bf16 amx_bf16\n"
    )
    assert hardware.cpu_flags(path) == {"fpu", "avx512_bf16", "amx_bf16"}
    assert hardware.cpu_flags(str(path)) == {"fpu", "avx512_bf16", "amx_bf16"}


def test_no_cpu_flags_where_the_file_has_none(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")  # as on ARM
    assert hardware.cpu_flags(path) == set()


def test_no_cpu_flags_where_there_is_no_file(tmp_path):
    assert hardware.cpu_flags(tmp_path / "absent") == set()


def test_recommend_joins_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: [(7, 5)])
    monkeypatch.setattr(hardware, "has_tpu", lambda: False)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: BF16_FLAGS)
    policy, reason = hardware.recommend()
    assert policy == "mixed_float16"
    assert "7.5" in reason
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: [])
    assert "avx512_bf16" in hardware.recommend().reason


def test_gpus_are_known_by_name_and_capability(monkeypatch):
    details = {"a": {"device_name": "H100", "compute_capability": (9, 0)}, "b": {}}
    monkeypatch.setattr("tensorflow.config.get_visible_devices", lambda kind: details)
    monkeypatch.setattr(
        "tensorflow.config.experimental.get_device_details", details.get
    )
    assert hardware.gpu_names() == ["H100", "GPU"]
    assert hardware.gpu_capabilities() == [(9, 0), None]


def test_recommend_on_this_machine():
    policy, reason = hardware.recommend()
    assert policy in ("mixed_bfloat16", "mixed_float16", "float32")
    assert reason.endswith(".")
    capabilities = hardware.gpu_capabilities()
    assert all(c is None or (len(c) == 2 and c >= (1, 0)) for c in capabilities)
    assert hardware.has_tpu() in (True, False)
    described = hardware.choose(capabilities, hardware.has_tpu(), hardware.cpu_flags())
    assert (policy, reason) == described


def test_cpu_name_is_that_of_the_first_processor(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Big Core 9\nmodel name\t: x\n")
    assert hardware.cpu_name(path) == "Big Core 9"
    assert hardware.cpu_name(tmp_path / "missing")


def test_sizes_are_those_of_the_file(tmp_path):
    path = tmp_path / "status"
    path.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
    assert hardware.proc_bytes("VmHWM", path) == 2 * 2**20
    assert hardware.proc_bytes("VmSwap", path) is None
    assert hardware.proc_bytes("VmHWM", tmp_path / "absent") is None
