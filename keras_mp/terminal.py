"""What commands print: lines and progress bars, without TensorFlow's start-up lines."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

# The lines that TensorFlow prints when it starts: notices, warnings, and three lines at
# the level of errors, which appear on machines where nothing is wrong.
_STARTUP = re.compile(
    r"WARNING: All log messages before absl::InitializeLog"
    r"|[IW]\d{4} |\d{4}-\d\d-\d\d \S+ [IW] "
    r"|To enable the following instructions"
    r"|.*Unable to register cu\w+ (factory|plugin)"
    r"|.*failed call to cuInit"
)


class UserError(Exception):
    """What the user gave cannot be used; the message says what to do."""


def explain(called: str, needs: str, got: str, do: str) -> UserError:
    """Return the error for an option with a value that it cannot use."""
    return UserError(
        f"{called}\n  it needs:   {needs}\n  it got:     {got}\n  what to do: {do}"
    )


def show(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def fail(code: int, command: str, message: object) -> int:
    """Print to stderr why a command ended, and return its exit code."""
    print(f"\n{command}: {message}", file=sys.stderr)
    return code


def output_folder(path: str) -> pathlib.Path:
    """Make the folder that ``--output`` names, and check that it can be written to.

    Raises:
        UserError: It cannot.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".keras_mp_probe"
        with contextlib.closing(probe.open("w")):
            probe.unlink()
    except OSError as error:
        raise explain(
            f"--output {path}",
            "a folder that can be written to",
            f"{type(error).__name__}: {error.strerror}",
            "give another folder",
        ) from None
    return folder


@contextlib.contextmanager
def stderr_in(descriptor: int) -> Iterator[None]:
    """Redirect what this process and its libraries write to stderr to a file."""
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hide the lines that TensorFlow prints when it starts inside the block.

    After the block TensorFlow's notices and warnings are hidden; errors are shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        try:
            with stderr_in(file.fileno()):
                yield
        finally:
            file.seek(0)
            for line in file:
                if not _STARTUP.match(line):
                    sys.stderr.write(line)


@contextlib.contextmanager
def progress(total: int, doing: str) -> Iterator[Callable[[], None]]:
    """Show the progress of long work: as a bar in a terminal, not at all in a file.

    Lines that are printed meanwhile appear above the bar.

    Args:
        total: How many parts the work has.
        doing: What is done, in a few words.

    Yields:
        A function to call after each part.
    """
    if not sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda: bar.advance(task)
