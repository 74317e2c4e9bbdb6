"""What stands in for the "spawn" of multiprocessing, and starts without an import.

A process that keras_mp or a benchmark spawns imports TensorFlow, which takes seconds.
One that is forked by the server of ``processes.py`` has it. Beside that it is as a
spawned one: its function and arguments are pickled, and it inherits the environment,
whether Ctrl-C is ignored and the file for errors as they are when it starts.
"""

import contextlib
import multiprocessing
import multiprocessing.reduction
import os
import signal
from multiprocessing import forkserver

import pytest

from . import quick
from .processes import SERVER


class _Process(SERVER.Process):
    """A process of the server that inherits what a spawned one does."""

    def __getstate__(self):
        inherited = (
            dict(os.environ),
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            multiprocessing.reduction.DupFd(2),
        )
        return self.__dict__ | {"_inherited": inherited}

    def run(self):
        environment, is_ignored, errors = self._inherited
        os.environ.clear()
        os.environ.update(environment)
        if is_ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(errors.detach(), 2)
        quick.save_time()
        super().run()


class _Context:
    Pipe = staticmethod(SERVER.Pipe)
    Process = _Process


@contextlib.contextmanager
def forked_instead():
    """Within the block, what is spawned starts with TensorFlow imported."""
    # Started later, it would inherit what is meant for its first process.
    forkserver.ensure_running()
    contexts = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing,
            "get_context",
            lambda method=None: _Context if method == "spawn" else contexts(method),
        )
        yield
