"""Files that were damaged, forged or made for something else; what became of each."""

import io
import json
import pathlib
import random
import zipfile
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """What became of faults that were injected.

    Attributes:
        injected: How many there were.
        survived: How many were refused as they should be, or changed nothing.
        lost: A tuple of words, one for each of the others.
    """

    injected: int
    survived: int
    lost: tuple[str, ...]

    def __str__(self):
        return (
            f"{self.injected} injected, {self.survived} survived, {len(self.lost)} lost"
        )


def outcome(cases, attempt):
    """Return the `Outcome` of pairs of a name and a fault.

    Args:
        cases: An iterable of the pairs.
        attempt: Called with each fault; returns None, or in words what went wrong.
    """
    named = [(name, attempt(fault)) for name, fault in cases]
    lost = tuple(f"{name}: {words}" for name, words in named if words is not None)
    return Outcome(len(named), len(named) - len(lost), lost)


def cut(content, every=64, share=1.0):
    """Yield ``content`` cut off after each multiple of ``every`` bytes, from 0 on.

    Args:
        content: The bytes of a file.
        every: The distance of the cuts.
        share: The share of them that is yielded, always the same ones.
    """
    for end in _some(range(0, len(content), every), share):
        yield f"cut after {end} bytes", content[:end]


def flipped(content, share=1.0):
    """Yield ``content`` with one bit flipped, each of its bits in turn."""
    for bit in _some(range(8 * len(content)), share):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(changed)


def _some(numbers, share):
    chosen = random.Random(0).sample(numbers, max(1, round(share * len(numbers))))
    return sorted(chosen)


def archive(**members):
    """Return the bytes of a zip archive with members, ``_`` in place of their dots."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name.replace("_", "."), content)
    return file.getvalue()


def edited(content, **members):
    """Return a zip archive with other members, as of `archive`; None takes one away."""
    names = {name.replace("_", "."): new for name, new in members.items()}
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(file, "w") as made,
    ):
        for name in old.namelist():
            new = names.pop(name, old.read(name))
            if new is not None:
                made.writestr(name, new)
        for name, new in names.items():
            made.writestr(name, new)
    return file.getvalue()


def foreign_models(content):
    """Yield files that are no model of Keras, made from the ``content`` of one."""
    yield "empty", b""
    yield "text", b"something else"
    yield "an empty archive", archive()
    yield "an archive of a text", archive(readme_txt="hello")
    yield "arrays", arrays(x=np.ones(3), y=np.ones(3))
    yield "no config", edited(content, config_json=None)
    yield (
        "a config of another library",
        edited(content, config_json='{"model": "bert"}'),
    )
    yield "a config that is a list", edited(content, config_json="[1, 2]")
    yield "a config that is no JSON", edited(content, config_json="{")
    yield "a config nested too deep", edited(content, config_json="[" * 100_000)
    yield "no weights", edited(content, **{"model_weights_h5": None})


def arrays(**named):
    """Return the bytes of an ``.npz`` file; objects in it are pickled."""
    file = io.BytesIO()
    np.savez(file, **named)
    return file.getvalue()


class Payload:
    """An object whose unpickling makes a file.

    Args:
        path: The file.
    """

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def pickled(path):
    """Return an array of one `Payload`, which an ``.npz`` file pickles."""
    return np.array([Payload(path)], object)


def of_newer_keras(content, **members):
    """Return a model's file as if Keras 99 had saved it, with other members."""
    metadata = json.dumps({"keras_version": "99.1.0", "date_saved": "2099-01-01"})
    return edited(content, metadata_json=metadata, **members)
