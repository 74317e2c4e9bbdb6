"""Every Python block of the README and the documentation runs and prints what it says.

Blocks that use a strategy have a process of their own; all others share one.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest
from support.processes import run_alone

import keras_mp
from keras_mp.processes import free_addresses

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (str(page.relative_to(ROOT)), language, code)
    for page in PAGES
    for language, code in re.findall(
        r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
]
PYTHON = [(page, code) for page, language, code in BLOCKS if language == "python"]
BASH = [code for _, language, code in BLOCKS if language == "bash"]
CASES = [
    pytest.param(
        code,
        id=f"{page}-{index}",
        marks=() if page == "README.md" else pytest.mark.long,
    )
    for index, (page, code) in enumerate(PYTHON)
]


def run(codes):
    """Run blocks in one process; return what each printed, and its traceback."""
    return run_alone("support.blocks", json.dumps(codes))


@pytest.fixture(scope="module")
def results(request):
    """Return what each block printed and its traceback, by its code.

    Of the blocks that tests were selected for.
    """
    codes = [
        item.callspec.params["code"]
        for item in request.session.items
        if getattr(item, "function", None) is test_python_block_runs
    ]
    together = [code for code in codes if "tf.distribute" not in code]
    alone = [code for code in codes if "tf.distribute" in code]
    found = dict(zip(together, run(together), strict=True))
    return found | {code: run([code])[0] for code in alone}


@pytest.mark.parametrize("code", CASES)
def test_python_block_runs(code, results):
    printed, failure = results[code]
    assert failure is None, failure
    for expected in re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert expected in printed.splitlines()


def test_the_two_commands_are_what_the_suite_and_ci_run():
    assert [code.strip() for code in BASH if code.startswith("pip")] == [
        "pip install '.[demo]' && python -m keras_mp train",
        "pip install '.[test]' && pytest",
    ]


@pytest.mark.long
def test_two_workers_run_as_launched(tmp_path):
    (launch,) = [code for code in BASH if "TF_CONFIG" in code]
    (script,) = [code for _, code in PYTHON if "MultiWorkerMirroredStrategy" in code]
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
    # `tests/benchmarks` runs the benchmarks, in small.
    starts = ("pip install", "python -m benchmarks")
    assert all(code.startswith(starts) or "TF_CONFIG" in code for code in BASH)


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for _, language, _ in BLOCKS} == {"bash", "python", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    folders = "tests|benchmarks|conformance|keras_mp|notebooks"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    entries = set(re.findall(r"^::: keras_mp\.(.+)$", pages, re.MULTILINE))
    # A function that shares its module's name is asked for inside the module.
    entries |= {entry.rpartition(".")[2] for entry in entries}
    modules = {"layers": keras_mp.layers, "scaling": keras_mp.scaling}
    modules |= {"callbacks": keras_mp.callbacks, "plot": keras_mp.plot}
    names = set(keras_mp.__all__) - {"__version__", *modules}
    for prefix, module in modules.items():
        names |= {f"{prefix}.{name}" for name in module.__all__}
    assert names - entries == set()
    operations = {name for name in vars(keras_mp.ops) if not name.startswith("_")}
    operations &= set(dir(keras.ops))
    assert operations
    assert {name for name in operations if f"`{name}`" not in pages} == set()


def test_the_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
