"""Other processes: their errors kept in a file, and shown if they end too soon."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from keras_mp import terminal

# Seconds. A collective that waits for a lost peer waits for ever; the longest that a
# process took otherwise is 19 minutes on two cores, most of them XLA's and JAX's.
DEADLINE = 3600


class ChildError(Exception):
    """A process ended before its work was done."""


@dataclasses.dataclass
class Child:
    """A process, as its parent sees it."""

    name: str
    process: multiprocessing.Process
    connection: Connection
    log: str

    def end(self) -> None:
        """Make sure that it is gone, once its connection is closed."""
        self.process.join(0.5)
        self.process.kill()  # TensorFlow's server catches SIGTERM
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


def start(name: str, folder: str, target: Callable, *arguments, variables=()) -> Child:
    """Start ``target(connection, *arguments)`` in a process of its own.

    Args:
        name: What messages call it.
        folder: Where what it writes to stderr is kept.
        target: A function of a module; it gets its end of a pipe first.
        *arguments: What can be pickled.
        variables: Of its environment, beside those of this process, as a dict.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    log = os.path.join(folder, name)
    with _as_for_child(log, dict(variables)):
        process.start()
    theirs.close()
    return Child(name, process, ours, log)


@contextlib.contextmanager
def _as_for_child(log: str, variables: dict[str, str]) -> Iterator[None]:
    """What a child inherits: no Ctrl-C (its parent ends it), stderr in a file."""
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


def alone(function: Callable, *arguments):
    """Return what ``function(*arguments)`` returns in a process of its own.

    Raises:
        TimeoutError: It took longer than ``DEADLINE`` seconds.
        ChildError: It failed; the error has the last lines that it wrote.
    """
    name = f"{function.__name__}{arguments}"
    with tempfile.TemporaryDirectory(prefix="keras_mp_") as folder:
        # PyTorch's threads would spin where they wait for each other, and slow others.
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


def _send(connection, function, arguments):
    connection.send(function(*arguments))


def free_addresses(count: int) -> list[str]:
    """Different addresses on this machine that nobody listens at just now."""
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        names = [stack.enter_context(server).getsockname() for server in servers]
    return [f"{host}:{port}" for host, port in names]
