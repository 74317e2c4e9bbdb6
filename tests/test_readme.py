"""Every Python block of the README runs and prints what its comments say."""

import pathlib
import re
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]


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
    commands = [code.strip() for language, code in BLOCKS if language == "bash"]
    assert commands == [
        "pip install '.[demo]' && python -m keras_mp train",
        "pip install '.[test]' && pytest",
    ]


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}


def test_linked_files_exist():
    root = pathlib.Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
