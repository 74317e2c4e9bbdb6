"""Writing a file or folder so that it appears complete, or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


def check(path: pathlib.Path, overwrite: bool) -> None:
    """Check that ``path`` can be written to, and that what is there may be replaced.

    Raises:
        ValueError: It cannot, or may not; the message says why and what to do.
    """
    called = f"keras_mp.export(..., path='{path}')"
    if not path.parent.is_dir():
        raise ValueError(
            f"{called} needs a folder to write into. There is no folder "
            f"'{path.parent}': create it, or check the path."
        )
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(
            f"{called}: there is something at this path already. Give another path, or "
            "pass overwrite=True, on the command line --overwrite, to replace it."
        )
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise ValueError(
            f"{called} with overwrite=True replaces a file or a SavedModel. This is a "
            "folder with other contents: give another path, or remove it yourself."
        )


@contextlib.contextmanager
def put_at(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path to write to, and move what the block wrote there to ``path``.

    Both are on one file system, so the move copies nothing. If the block raises,
    ``path`` is as it was. A file replaces a file in one step. Folders take two, and an
    error in the second one moves the old folder back.
    """
    prefix = f".{path.name}-"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
        new = pathlib.Path(folder) / "new" / path.name
        new.parent.mkdir()
        yield new
        if new.is_dir() or path.is_dir():
            _swap(new, path, pathlib.Path(folder) / "old")
        else:
            os.replace(new, path)


def _swap(new: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
    """Move ``path``, if it is there, to ``old``, and ``new`` to ``path``."""
    moved = os.path.lexists(path)
    if moved:
        os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        if moved:
            os.rename(old, path)
        raise


def size(path: pathlib.Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())
