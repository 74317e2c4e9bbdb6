"""Child processes, whose errors are kept in a file and shown if they end too soon."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.process
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from keras_mp import terminal

# Seconds after which `alone` gives up: a collective that waits for a lost peer never
# ends. The longest measurement took 19 minutes on two cores, most of it compilation.
DEADLINE = 3600

Result = TypeVar("Result")


class ChildError(Exception):
    """A process ended before its work was done."""


@dataclasses.dataclass
class Child:
    """A process, as its parent sees it."""

    name: str
    process: multiprocessing.process.BaseProcess
    connection: Connection
    log: str

    def end(self) -> None:
        """End the process if closing its connection has not ended it."""
        self.process.join(0.5)
        self.process.kill()  # SIGKILL, because TensorFlow's server catches SIGTERM
        self.process.join()

    def error(self) -> ChildError:
        """Return what to raise for a process that ended too soon."""
        self.process.join(10)
        code = self.process.exitcode
        with open(self.log, errors="replace") as file:
            tail = file.read().strip().splitlines()[-15:]
        hint = " (killed: probably out of memory)" if code == -signal.SIGKILL else ""
        return ChildError(
            f"{self.name} ended with exit code {code}{hint} before it was "
            "done. The last lines it wrote:\n"
            + "\n".join(f"  | {line}" for line in tail or ["(nothing)"])
        )


def start(
    name: str,
    folder: str,
    target: Callable[..., object],
    *arguments: Any,
    variables: Mapping[str, str] | None = None,
) -> Child:
    """Start ``target(connection, *arguments)`` in a process of its own.

    Args:
        name: The name of the process in messages.
        folder: The folder for a file with what it writes to stderr.
        target: A function of a module; its first argument is its end of a pipe.
        *arguments: Further arguments, which can be pickled.
        variables: Environment variables to add to those of this process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    log = os.path.join(folder, name)
    with _inheritance(log, variables or {}):
        process.start()
    theirs.close()
    return Child(name, process, ours, log)


@contextlib.contextmanager
def _inheritance(log: str, variables: Mapping[str, str]) -> Iterator[None]:
    """Set what a child inherits: Ctrl-C is ignored, and stderr goes to a file.

    Ctrl-C ends the parent, which ends the child.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    before = dict(os.environ)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.environ.update(variables)
        with open(log, "w") as file, terminal.stderr_in(file.fileno()):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGINT, interrupt)


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function(*arguments)`` in a process of its own and return its result.

    Raises:
        TimeoutError: It took longer than ``DEADLINE`` seconds.
        ChildError: It failed; the message has the last lines that it wrote.
    """
    name = f"{function.__name__}{arguments}"
    with tempfile.TemporaryDirectory(prefix="keras_mp_") as folder:
        # PyTorch's threads would keep the cores busy while they wait for each other.
        passive = {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)
        child = start(
            "a measurement", folder, _send, function, arguments, variables=passive
        )
        try:
            if not child.connection.poll(DEADLINE):
                raise TimeoutError(f"{name} took {DEADLINE} s.")
            return child.connection.recv()
        except EOFError:
            raise child.error() from None
        finally:
            child.connection.close()
            child.end()


def _send(
    connection: Connection, function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    connection.send(function(*arguments))


def free_addresses(count: int) -> list[str]:
    """Return different addresses of this machine whose ports are free now."""
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        names = [stack.enter_context(server).getsockname() for server in servers]
    return [f"{host}:{port}" for host, port in names]
