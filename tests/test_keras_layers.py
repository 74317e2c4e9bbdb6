"""Keras's own tests of layers and models pass in a process that uses keras_mp.

They ship in Keras's wheel. A `Policy` is made first, which is what puts the hook on
Keras's layers.
"""

import importlib.util
import pathlib
import subprocess
import sys

import keras
import pytest

_RUN = """
import sys, pytest, keras_mp
keras_mp.Policy("mixed_float16", float32=["head"])
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", *sys.argv[1:]]))
"""

SHORT = ["layers/layer_test.py", "models/sequential_test.py"]
LONG = ["layers/core", "layers/normalization", "layers/rnn", "models"]


def run(*names):
    root = pathlib.Path(importlib.util.find_spec("keras.src").origin).parent
    paths = [str(root / name) for name in names]
    if not all(pathlib.Path(path).exists() for path in paths):
        pytest.skip(f"the wheel of Keras {keras.__version__} holds no tests")
    command = [sys.executable, "-c", _RUN, *paths, "--rootdir", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_short(name):
    done = run(name)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long(name):
    done = run(name)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
