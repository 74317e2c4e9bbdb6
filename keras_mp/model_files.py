"""A ``.keras`` file that a command was given: checked, loaded, errors explained."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import keras

import keras_mp.api  # noqa: F401  With it Keras knows keras_mp's classes in files.
from keras_mp import saved_files
from keras_mp.terminal import explain


def check(path: str, called: str) -> None:
    """Check that ``path`` is a ``.keras`` file.

    Args:
        path: The path.
        called: What the user typed, for the message.

    Raises:
        UserError: It is not.
    """
    if not os.path.isfile(path):
        raise explain(called, "a .keras file", "no such file", "check the path")
    if not path.endswith(".keras") or not zipfile.is_zipfile(path):
        raise explain(
            called,
            "a model in Keras 3's .keras format",
            "a file that is not in this format",
            'write it with model.save("model.keras")',
        )
    fault = saved_files.fault_of_model(path)
    if fault:
        raise explain(
            called,
            "a .keras file that is whole",
            f"a file that {fault}",
            "take another copy of it, or save the model again",
        )


def load(
    path: str,
    called: str,
    doing: str,
    using: str,
    loader: Callable[[str], Any] = keras.saving.load_model,
) -> keras.Model:
    """Return the model of a ``.keras`` file, without the warnings of loading it.

    Args:
        path: The file.
        called: What the user typed, for messages.
        doing: What the command does with the model, for messages.
        using: The function that does so in Python, for messages.
        loader: Loads the model from a path.

    Raises:
        UserError: There is no such file, or it cannot be loaded.
    """
    check(path, called)
    try:
        with warnings.catch_warnings():  # of the optimizer's state
            warnings.simplefilter("ignore")
            return loader(path)
    except Exception as error:
        raise explain(
            called,
            "a model that Keras can load by itself",
            on_one_line(error),
            f"save it again with this version of Keras; for custom layers, {doing} in "
            f"a script of your own, with {using}",
        ) from None


def on_one_line(error: Exception) -> str:
    """Return the error as one line, without Keras's escape codes for bold."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"
