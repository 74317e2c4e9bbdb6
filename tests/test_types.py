"""Every public name has a type that a type checker knows, with nothing to infer.

Keras and TensorFlow declare no types: theirs are not counted, nor whole classes, which
are derived from Keras's; but each member of a class is.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("basedpyright")

ROOT = pathlib.Path(__file__).parent.parent
# The modules whose names users import.
PUBLIC = {
    "keras_mp",
    "keras_mp.api",
    "keras_mp.callbacks",
    "keras_mp.hardware",
    "keras_mp.layers",
    "keras_mp.ops",
    "keras_mp.plot",
    "keras_mp.scaling",
}


def names_of(symbol):
    return {symbol["name"], *symbol.get("alternateNames", ())}


def module_of(name):
    return name.rpartition(".")[0]


@pytest.fixture(scope="module")
def symbols():
    """What the type checker says of each public name, and of members of classes."""
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    command += ["--verifytypes", "keras_mp", "--ignoreexternal", "--outputjson"]
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True)
    found = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    tops = set().union(*map(names_of, found))
    tops = {name for name in tops if module_of(name) in PUBLIC}
    tops |= {s["name"] for s in found if names_of(s) & tops}
    return {
        symbol["name"]: symbol
        for symbol in found
        if symbol["category"] not in ("module", "class")
        and (symbol["name"] in tops or module_of(symbol["name"]) in tops)
    }


def test_the_checker_sees_the_public_names(symbols):
    assert {
        "api.compile",
        "hardware.recommend",
        "LossScale.update",
        "LossScaleOptimizer.apply",
        "Policy.for_layer",
    } <= {".".join(name.split(".")[-2:]) for name in symbols}


def test_every_public_name_is_annotated_in_full(symbols):
    unknown = {
        name: [each["message"] for each in symbol["diagnostics"]]
        for name, symbol in symbols.items()
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    assert not unknown
