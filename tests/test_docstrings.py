"""Every public docstring has an example, and every example runs."""

import doctest
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil

import keras
import numpy as np
import pytest

import benchmarks
import conformance
import keras_mp

PUBLIC = [
    value
    for module in (
        keras_mp,
        keras_mp.callbacks,
        keras_mp.layers,
        keras_mp.plot,
        keras_mp.scaling,
    )
    for value in (getattr(module, name) for name in module.__all__)
    if callable(value)
]
# Bases, and what is not made by hand.
WITHOUT_EXAMPLE = {"Island", "LossScale", "MemoryReport", "Verdict"}

NAMES = [
    info.name
    for package in (benchmarks, conformance, keras_mp)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not info.name.endswith("__main__")
]


def has_examples(name):
    return ">>> " in pathlib.Path(importlib.util.find_spec(name).origin).read_text()


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: value.__name__)
def test_public_docstrings_have_an_example(value):
    if value.__name__ not in WITHOUT_EXAMPLE:
        assert ">>> " in inspect.getdoc(value)


def example_names():
    """Return what an example may take for granted, as a reader would."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    scaling = keras_mp.scaling.StaticLossScale(8.0)
    keras_mp.compile(model, "adam", "mse", policy="mixed_float16", scaling=scaling)
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    model.optimizer.build(model.trainable_variables)
    return {
        "keras": keras,
        "keras_mp": keras_mp,
        "np": np,
        "model": model,
        "x": x,
        "y": y,
        "Verdict": keras_mp.scaling.Verdict,
        "policy_scope": keras_mp.policy_scope,
    }


def test_every_module_is_imported():
    for name in NAMES:
        importlib.import_module(name)


# Each has a model of its own, which examples may train, convert and compile.
@pytest.mark.parametrize("name", [*filter(has_examples, NAMES)])
@pytest.mark.filterwarnings("ignore:LossScaleOptimizer.apply")
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = example_names()
    names["model"].save("model.keras")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(module):
        example.globs.update(names)
        messages = []
        runner.run(example, out=messages.append)
        assert not messages, "".join(messages)
    assert runner.tries
