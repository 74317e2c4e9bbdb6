"""``python -m benchmarks``: sections, the environment, the file."""

import json

import pytest

from benchmarks import __main__ as command
from benchmarks import suite
from benchmarks.workloads import WORKLOADS
from keras_mp import hardware


@pytest.fixture
def sections(monkeypatch):
    """Sections that measure nothing and say what they were asked."""
    asked = []

    def measure(models, policy, rounds, show):
        asked.append((models, policy, rounds))
        return {"answer": 42}

    known = dict.fromkeys(suite.SECTIONS, (measure, lambda result: str(result)))
    monkeypatch.setattr(suite, "SECTIONS", known)
    return asked


def test_the_default_is_what_loss_scaling_costs(sections, tmp_path, capsys):
    assert command.main(["--policy", "float32", "--output", str(tmp_path)]) == 0
    assert sections == [(list(WORKLOADS), "float32", 15)]
    saved = json.loads((tmp_path / "bench-optimizers.json").read_text())
    assert saved["optimizers"] == {"answer": 42}
    assert saved["environment"] == suite.environment()
    assert "{'answer': 42}" in capsys.readouterr().out


def test_sections_and_models_may_be_chosen(sections, tmp_path):
    options = "--section casts --section stages --model wide --rounds 3"
    arguments = [*options.split(), "--policy", "mixed_bfloat16"]
    assert command.main([*arguments, "--output", str(tmp_path)]) == 0
    assert sections == [(["wide"], "mixed_bfloat16", 3)] * 2
    assert (tmp_path / "bench-casts-stages.json").exists()


@pytest.mark.cpu
def test_gpu_is_refused_clearly_where_there_is_none(tmp_path, capsys):
    assert command.main(["--device", "gpu", "--output", str(tmp_path)]) == 2
    assert "what to do" in capsys.readouterr().err


def test_the_policy_is_explained(monkeypatch):
    advice = hardware.Recommendation("float32", "No tensor cores.")
    monkeypatch.setattr(hardware, "recommend", lambda: advice)
    assert command.policy_of("auto") == advice
    policy, reason = command.policy_of("mixed_float16")
    assert policy == "mixed_float16"
    assert "the advice is float32: No tensor cores." in reason


def test_environment_names_the_machine_and_the_versions():
    machine = suite.environment()
    assert {"keras_mp", "python", "keras"} <= set(machine["versions"])
    assert machine["cpu"] in suite.heading(machine)
    assert f"keras {machine['versions']['keras']}" in suite.heading(machine)
    machine["gpus"] = ["H100", "H200"]
    assert suite.heading(machine).startswith(f"H100, H200, {machine['cpu']}, ")


@pytest.mark.parametrize("rounds", ["0", "-3", "many"])
def test_rounds_are_a_number_above_0(rounds, capsys):
    with pytest.raises(SystemExit):
        command.main(["--rounds", rounds])
    assert "--rounds" in capsys.readouterr().err
