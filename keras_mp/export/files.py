"""A file or folder that appears whole, or not at all."""

import contextlib
import os
import pathlib
import tempfile


def check(path: pathlib.Path, overwrite: bool) -> None:
    """Refuse a path that cannot be written, or holds what must not be replaced.

    Raises:
        ValueError: It says what is in the way and what to do.
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
            "pass overwrite=True to replace it."
        )
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise ValueError(
            f"{called} with overwrite=True replaces a file or a SavedModel. This is a "
            "folder with other contents: give another path, or remove it yourself."
        )


@contextlib.contextmanager
def put_at(path: pathlib.Path):
    """Yield a path to write to; what is there after the block is moved to ``path``.

    Both are on one file system, so the move copies nothing. If the block raises,
    ``path`` is as it was. A file takes the place of another in one step; between two
    folders there is none, but an error in between brings the old one back.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as room:
        new = pathlib.Path(room) / "new" / path.name
        new.parent.mkdir()
        yield new
        if new.is_dir() or path.is_dir():
            _swap(new, path, pathlib.Path(room) / "old")
        else:
            os.replace(new, path)


def _swap(new, path, old):
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
    """Return how many bytes the file, or the files in the folder, ``path`` have."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())
