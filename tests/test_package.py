"""The wheel and the sdist hold what they should, and say what they need."""

import ast
import email
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from keras_mp.version import __version__

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        name = next(name for name in names if name.endswith("METADATA"))
        return names, email.message_from_bytes(archive.read(name))


def test_wheel_holds_every_module_and_the_type_marker(built):
    names, _ = metadata(built[0])
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "keras_mp").rglob("*.py")
    }
    packaged = {name for name in names if name.startswith("keras_mp/")}
    assert packaged == sources | {"keras_mp/py.typed"}
    assert any(name.endswith("LICENSE") for name in names)


def test_metadata_names_dependencies_and_extras(built):
    _, meta = metadata(built[0])
    required = [text for text in meta.get_all("Requires-Dist") if "extra" not in text]
    assert {text.split(">")[0] for text in required} == {"keras", "numpy", "tensorflow"}
    extras = {"clients", "demo", "docs", "export", "gpu", "notebooks", "orbax", "test"}
    assert set(meta.get_all("Provides-Extra")) == extras
    assert meta["Requires-Python"] == ">=3.10"


def test_sdist_builds_the_same_wheel(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert "keras_mp/py.typed" in names


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == __version__


def test_wheel_holds_no_benchmark_and_no_conformance_code(built):
    names, _ = metadata(built[0])
    assert not any("bench" in name or "conformance" in name for name in names)


def lines_of_code(path):
    """Return how many lines of a file are no docstring, no comment and not empty."""
    text = path.read_text()
    documented = set()
    for node in ast.walk(ast.parse(text)):
        has_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_docstring and ast.get_docstring(node) is not None:
            first = node.body[0]
            documented |= {*range(first.lineno, first.end_lineno + 1)}
    return sum(
        bool(line.strip()) and not line.strip().startswith("#")
        for number, line in enumerate(text.splitlines(), start=1)
        if number not in documented
    )


# A limit to think at, not for ever: what reads more than one tenth longer than before
# has to say what it replaces. Before diagnosis the wheel had 9,300 lines, and before
# resuming 13,900.
def test_the_wheel_has_at_most_16000_lines_of_code():
    files = (ROOT / "keras_mp").rglob("*.py")
    assert sum(map(lines_of_code, files)) <= 16_000
