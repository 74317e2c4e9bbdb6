"""The rooms of CONTRIBUTING.md: imports point one way, public names are the documented.

The graph is read from the sources, so that a lazy import counts too.
"""

import ast
import inspect
import pathlib

import pytest

import keras_mp

ROOT = pathlib.Path(keras_mp.__file__).parent

# Each room and the rooms it may import.
ROOMS = {
    "version": set(),
    "arguments": set(),
    "hardware": set(),
    "terminal": set(),
    "tables": set(),
    "processes": {"terminal"},
    "dtypes": set(),
    "wrapping": set(),
    "private": {"dtypes", "wrapping"},
    "casts": {"dtypes", "private"},
    "kinds": set(),
    "stacks": {"dtypes", "kinds", "private"},
    "numerics": {"dtypes", "kinds", "private", "stacks"},
    "ops": {"casts", "dtypes", "private"},
    "precision_lists": set(),
    "lists": {"precision_lists"},
    "flow": {"casts", "dtypes", "private"},
    "speed": {"dtypes", "private", "wrapping"},
    "guards": {
        "casts",
        "dtypes",
        "flow",
        "ops",
        "precision_lists",
        "private",
        "speed",
        "wrapping",
    },
    "saving": set(),
    "saved_files": set(),
    "scaling": {"saving"},
    "distribute": {"dtypes", "kinds", "private", "stacks", "wrapping"},
    "fused": {"distribute", "dtypes", "kinds", "numerics", "private", "stacks"},
    "optimizer": {
        "distribute",
        "dtypes",
        "fused",
        "kinds",
        "numerics",
        "private",
        "saving",
        "scaling",
        "stacks",
        "wrapping",
    },
    "policies": {
        "dtypes",
        "guards",
        "hardware",
        "precision_lists",
        "private",
        "saving",
    },
    "layers": {"casts", "dtypes", "flow", "policies", "private", "saving"},
    "float32_model": {"dtypes", "guards", "policies", "private"},
    "recording": {
        "dtypes",
        "float32_model",
        "guards",
        "kinds",
        "private",
        "wrapping",
    },
    "watching": {"private", "wrapping"},
    "protection": {
        "distribute",
        "dtypes",
        "numerics",
        "optimizer",
        "private",
        "watching",
        "wrapping",
    },
    "heads": {"dtypes", "guards", "policies", "precision_lists", "private"},
    "placement": {
        "dtypes",
        "guards",
        "heads",
        "layers",
        "policies",
        "private",
        "tables",
    },
    "conversion": {"distribute", "layers", "placement", "policies", "private"},
    "input_warnings": {
        "distribute",
        "dtypes",
        "precision_lists",
        "private",
        "watching",
        "wrapping",
    },
    "plot": {"recording", "saved_files", "tables"},
    "diagnosis": {
        "arguments",
        "conversion",
        "heads",
        "kinds",
        "numerics",
        "optimizer",
        "plot",
        "policies",
        "private",
        "recording",
        "tables",
    },
    "calibration": {
        "diagnosis",
        "distribute",
        "optimizer",
        "private",
        "recording",
        "wrapping",
    },
    "archives": {"saved_files"},
    "resuming": {
        "arguments",
        "archives",
        "distribute",
        "private",
        "saved_files",
        "wrapping",
    },
    "guarded": {
        "arguments",
        "distribute",
        "dtypes",
        "optimizer",
        "private",
        "protection",
        "resuming",
        "scaling",
        "speed",
    },
    "training": {
        "arguments",
        "calibration",
        "conversion",
        "distribute",
        "guarded",
        "guards",
        "heads",
        "input_warnings",
        "optimizer",
        "policies",
        "private",
        "resuming",
        "scaling",
        "speed",
    },
    "lint": {
        "arguments",
        "dtypes",
        "flow",
        "guarded",
        "guards",
        "optimizer",
        "policies",
        "private",
    },
    "under_policy": {
        "conversion",
        "dtypes",
        "guarded",
        "optimizer",
        "private",
        "scaling",
    },
    "loading": {
        "distribute",
        "guarded",
        "guards",
        "heads",
        "optimizer",
        "policies",
        "private",
        "protection",
        "resuming",
        "saved_files",
        "speed",
        "training",
        "under_policy",
    },
    "flight": {
        "arguments",
        "archives",
        "diagnosis",
        "private",
        "recording",
        "saved_files",
    },
    "callbacks": {
        "diagnosis",
        "distribute",
        "dtypes",
        "flight",
        "optimizer",
        "private",
        "recording",
        "resuming",
        "saved_files",
        "scaling",
    },
    "export": {"arguments", "dtypes", "float32_model", "private", "saved_files"},
    "model_saving": {
        "arguments",
        "dtypes",
        "export",
        "loading",
        "private",
        "saved_files",
    },
    "memory": {
        "arguments",
        "hardware",
        "kinds",
        "optimizer",
        "policies",
        "private",
        "tables",
        "training",
    },
    "api": {
        "calibration",
        "callbacks",
        "conversion",
        "diagnosis",
        "export",
        "flight",
        "guarded",
        "hardware",
        "layers",
        "lint",
        "lists",
        "loading",
        "memory",
        "model_saving",
        "ops",
        "optimizer",
        "placement",
        "plot",
        "policies",
        "resuming",
        "scaling",
        "training",
        "version",
    },
    "model_files": {"api", "saved_files", "terminal"},
    "data_files": {"saved_files", "terminal"},
    "compare": {
        "data_files",
        "hardware",
        "model_files",
        "plot",
        "processes",
        "saved_files",
        "scaling",
        "tables",
        "terminal",
    },
    "commands": {
        "compare",
        "data_files",
        "diagnosis",
        "export",
        "flight",
        "hardware",
        "lint",
        "loading",
        "model_files",
        "processes",
        "terminal",
    },
    "cli": {"commands", "hardware", "terminal"},
    "__main__": {"cli"},
}

# Rooms that may speak TensorFlow; everything else is keras.ops.
TENSORFLOW = {
    "compare",
    "distribute",
    "export",
    "fused",
    "hardware",
    "memory",
    "private",
    "recording",
    "resuming",
    "speed",
}


def modules():
    return sorted(ROOT.rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path):
    """Yield the dotted names that a module imports, ``from a import b`` as ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path):
    names = [name.split(".") for name in imports(path)]
    return {name[1] for name in names if name[0] == "keras_mp" and len(name) > 1}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert rooms_imported(path) - {room} <= ROOMS[room]


def test_the_graph_has_no_cycle():
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in below)


def test_every_room_is_there_and_known():
    found = {room_of(path) for path in modules()} - {"__init__"}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_tensorflow_stays_in_its_rooms(path):
    uses = any(name.split(".")[0] == "tensorflow" for name in imports(path))
    assert not uses or room_of(path) in TENSORFLOW


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_keras_internals_are_never_imported(path):
    assert not any(name.startswith("keras.src") for name in imports(path))


def test_public_names_have_docstrings_of_their_own():
    for module in (
        keras_mp,
        keras_mp.layers,
        keras_mp.callbacks,
        keras_mp.plot,
        keras_mp.scaling,
    ):
        assert module.__all__ == sorted(module.__all__)
        for name in set(module.__all__) - {"__version__"}:
            value = getattr(module, name)
            # A class has its base's if it has none.
            own = (
                vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
            )
            assert own, f"{name} has no docstring"


#: Lines of a file, and of a function without its docstring, that can be read at once.
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def lines_of(node):
    """Return how many lines ``node`` has without its docstring."""
    text = ast.get_docstring(node, clean=False)
    documented = (
        0 if text is None else node.body[0].end_lineno - node.body[0].lineno + 1
    )
    return node.end_lineno - node.lineno + 1 - documented


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert lines_of(node) <= LONGEST_FUNCTION, node.name
