"""``docs/reliability.json``, and the page that is made of it for people."""

import json
import pathlib
import platform

import keras
import tensorflow as tf

from keras_mp.tables import markdown

ROOT = pathlib.Path(__file__).parents[2]
RECORD = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

COMMAND = "python -m tests.reliability --write"


def read():
    """Return the record: versions, and numbers by kind of fault."""
    return json.loads(RECORD.read_text())


def write(faults):
    """Write the record and the page.

    Args:
        faults: How many were injected and how many survived, by kind.
    """
    versions = {
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    RECORD.write_text(json.dumps({"versions": versions, "faults": faults}, indent=1))
    PAGE.write_text(page(read()))


def page(record):
    """Return the text of the page."""
    versions, faults = record["versions"], record["faults"]
    rows = [
        [kind, f"{injected:,}", f"{survived:,}", f"{injected - survived:,}"]
        for kind, (injected, survived) in faults.items()
    ]
    table = markdown(["fault", "injected", "survived", "lost"], rows)
    return f"""# Reliability

What was broken on purpose, and what became of it. A fault is survived if training
ends with the very bytes of a run without it, or, for a damaged file, if the file is
refused by its name with what to do, or is read with all its numbers right.

{table}

Keras {versions["keras"]}, TensorFlow {versions["tensorflow"]}, Python
{versions["python"]}, on a CPU; replicas are two logical CPUs, workers two processes.
The numbers are those that the tests have counted, and `{COMMAND}`
counts them again.
"""
