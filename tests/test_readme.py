"""Every Python block of the README runs and prints what its comments say."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from keras_mp.processes import free_addresses

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
BASH = [code for language, code in BLOCKS if language == "bash"]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for expected in re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert expected in done.stdout


def test_the_two_commands_are_what_the_suite_and_ci_run():
    assert [code.strip() for code in BASH if code.startswith("pip")] == [
        "pip install '.[demo]' && python -m keras_mp train",
        "pip install '.[test]' && pytest",
    ]


def test_two_workers_run_as_launched(tmp_path):
    (launch,) = [code for code in BASH if "TF_CONFIG" in code]
    (script,) = [code for code in PYTHON if "MultiWorkerMirroredStrategy" in code]
    (tmp_path / "train.py").write_text(script)
    for port, free in zip(("12345", "12346"), free_addresses(2), strict=True):
        launch = launch.replace(port, free.rpartition(":")[2])
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", launch],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
    )
    assert done.stdout.split() == ["24", "24"], done.stderr[-3000:]
    assert (tmp_path / "model.keras").exists()


def test_every_bash_block_is_run():
    assert all(code.startswith("pip") or "TF_CONFIG" in code for code in BASH)


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}


def test_linked_files_exist():
    root = pathlib.Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
