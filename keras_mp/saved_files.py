"""Files of models and arrays: what they hold, and what is wrong with a damaged one."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

#: What reading a damaged zip archive raises, or the arrays and the JSON in it.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    MemoryError,  # of an array's header that says it is huge
    NotImplementedError,  # of a way to compress that there is not
    OverflowError,
    RuntimeError,  # of an archive that says it has a password; of nesting too deep
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

_CONFIG, _METADATA = "config.json", "metadata.json"
_WEIGHTS = ("model.weights.h5", "model.weights.npz")


def checked_path(owner: str, name: str, path: Any) -> str:
    """Return ``path`` as text if it is a path.

    Args:
        owner: Name of the call, for the message.
        name: Name of the argument.
        path: What was passed.

    Raises:
        TypeError: It is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{owner}({name}={path!r}): `{name}` must be a path, a string or a "
            f"pathlib.Path. Got a {type(path).__name__}."
        )
    return os.fspath(path)


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path to write to, which becomes ``path`` once it is on the disk.

    If the block raises, as on a full disk, ``path`` is as it was, and nothing is left.
    """
    path = path.absolute()  # which has a name, even if it is '.'
    temporary = temporary_of(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def temporary_of(path: pathlib.Path) -> pathlib.Path:
    """Return the name of the file that is renamed to ``path`` when it is whole."""
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(path):
    with contextlib.suppress(OSError):  # of systems where no folder can be opened
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def config_of(path: str | os.PathLike[str]) -> Any:
    """Return the config of a saved model; None if there is none.

    Args:
        path: A ``.keras`` file, or a folder with what such a file holds.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if _CONFIG in archive.namelist():
                return json.loads(archive.read(_CONFIG))
    folder = pathlib.Path(path)
    if (folder / _CONFIG).is_file():
        return json.loads((folder / _CONFIG).read_text())
    return None


def fault_of_model(path: str | os.PathLike[str]) -> str | None:
    """Return what is wrong with the file of a saved model; None if it is whole.

    All of it is read, because Keras would load changed weights: where the checksum of
    an archive's weights is wrong, it reads them in pieces, which Python 3.13 does not
    check. That takes a tenth of the time of loading.

    Args:
        path: A path. Of what is no ``.keras`` file, HDF5 file or folder with a config,
            or is not on a local disk, nothing is known to be wrong.

    Returns:
        Words that follow "a file that".
    """
    file = pathlib.Path(path)
    if (file / _CONFIG).is_file():
        names = [each.name for each in file.iterdir()]
        weights = [file / name for name in names if name == _WEIGHTS[0]]
        return _fault_of_config(path, names) or _first(map(_fault_of_hdf5, weights))
    if file.is_file() and file.suffix == ".keras":
        return _fault_of_archive(file)
    if file.is_file() and file.suffix in (".h5", ".hdf5"):
        return _fault_of_hdf5(file)
    return None


def _first(faults):
    return next(filter(None, faults), None)


def _fault_of_archive(path):
    if not path.stat().st_size:
        return "is empty"
    if not zipfile.is_zipfile(path):
        return "was cut short, or is no zip archive"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip() or _of_two_sizes(archive.infolist())
    except DAMAGE as error:
        return f"is damaged ({type(error).__name__}: {error})"
    if broken is not None:
        return f"is damaged: its {broken!r} is not what was saved"
    return _fault_of_config(path, names)


def _of_two_sizes(members):
    """Return the name of a member that is not compressed and has two sizes, or None."""
    stored = (each for each in members if each.compress_type == zipfile.ZIP_STORED)
    wrong = (each.filename for each in stored if each.file_size != each.compress_size)
    return next(wrong, None)


def _fault_of_config(path, names):
    if _CONFIG not in names:
        return f"holds no {_CONFIG}, so it is of another kind"
    try:
        config = config_of(path)
    except DAMAGE as error:
        return f"is damaged: its {_CONFIG} is no JSON ({error})"
    if not isinstance(config, dict) or "class_name" not in config:
        return f"is of another kind: its {_CONFIG} describes no model of Keras"
    if not set(_WEIGHTS) & set(names):
        return "holds no weights"
    return None


def _fault_of_hdf5(path):
    import h5py

    try:
        with h5py.File(path):
            return None
    except OSError as error:
        return f"is damaged, or no HDF5 file ({error})"


def newer_keras_of(path: str | os.PathLike[str], present: str) -> str | None:
    """Return the version of Keras that saved a file, if it is newer than this one.

    Args:
        path: A ``.keras`` file that is whole.
        present: The version that is here. Patches of a release read the same files.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        text = archive.read(_METADATA) if _METADATA in archive.namelist() else b""
    saved = re.search(rb'"keras_version": "([0-9][^"]*)"', text)
    version = saved[1].decode() if saved else present
    return version if _release(version) > _release(present) else None


def _release(version):
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
