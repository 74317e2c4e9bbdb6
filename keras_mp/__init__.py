"""Mixed-precision training for Keras 3 with float32's results."""

import importlib
import pathlib
import sys
from typing import TYPE_CHECKING


def _is_command_line() -> bool:
    """Return whether this process is ``keras-mp`` or ``python -m keras_mp``."""
    by_module = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return ("-m", __name__) in by_module or pathlib.Path(sys.argv[0]).stem == "keras-mp"


if not TYPE_CHECKING and _is_command_line():
    # `--help` answers before TensorFlow has started.
    def __getattr__(name):
        return getattr(importlib.import_module("keras_mp.api"), name)

else:
    from keras_mp.api import *  # noqa: F403
    from keras_mp.api import __all__, __version__  # noqa: F401
