"""Ends this process by SIGKILL, at a write or after a time."""

import builtins
import os
import signal
import threading


def at_write(number):
    """Kill this process before the write with this number, from 1.

    A write is what changes a disk: that a file is made, written to, synchronised,
    renamed or removed. The last half of what is written is left out, as by a machine
    that stops.
    """
    left = number

    def counted(function, cut=None):
        def write(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                if cut is not None:
                    cut(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return write

    for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    open_file = builtins.open

    def open_counted(file, mode="r", *args, **kwargs):
        opened = open_file(file, mode, *args, **kwargs)
        if "w" not in mode:
            return opened
        return _Counted(opened, counted)

    builtins.open = open_counted


class _Counted:
    def __init__(self, file, counted):
        self._file = file
        self.write = counted(file.write, self._write_half)

    def _write_half(self, content):
        self._file.write(content[: len(content) // 2])
        self._file.flush()

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


def after(seconds):
    """Kill this process after a time."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL])
    timer.daemon = True
    timer.start()
