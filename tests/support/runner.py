"""Run cells in processes and judge them; a crash or a hang is charged to its cell only.

Cells of one strategy and one owner share a group of processes, one process for each
worker of the strategy, which go through them in the same order. A group that crashed
or hung is ended, and another one goes on with the rest.
"""

import collections
import concurrent.futures
import json
import os
import queue
import signal
import threading
import time

from . import cells, processes

# Groups at a time, on two cores: beside other tests, one.
PARALLEL = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2

# Seconds. A cell takes one or two. On a busy machine the end of `fit` under a
# MirroredStrategy at times waits for 40, with Keras alone as well.
START = 180  # imports, and workers that find each other
CELL = {"ours": 150, "keras": 75, "bare": 150}  # hanging is a known way of Keras's
PEERS = 8  # for the others, once one worker of a group has failed


def run(wanted, report=lambda cell, result: None):
    """Run the cells ``wanted`` and return their results.

    Args:
        wanted: Iterable of `cells.Cell`.
        report: Called with each cell and its result as they come in, from any thread.

    Returns:
        A dict from cell to a dict with ``outcome``, and unless it passed ``reason`` and
        ``traceback``. Outcomes are ``"passed"``, ``"refused"`` (ours: by a clear
        error), ``"no such option"`` (Keras's), ``"failed"`` (a wrong result),
        ``"crashed"`` and ``"hung"``.
    """
    wanted = list(wanted)
    groups = collections.defaultdict(list)
    for cell in wanted:
        groups[cell.strategy, cell.owner].append(cell)
    truth = _truths({cell.feature for cell in wanted})
    # The longest first, so that none is left to run alone.
    order = sorted(groups.values(), key=_cost, reverse=True)
    results = {}
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        runs = [pool.submit(_run_group, group, truth, report) for group in order]
        for each in runs:
            results |= each.result()
    return {cell: results[cell] for cell in wanted}


def _truths(features):
    """Return where the bare optimizer gets on one device, for each of ``features``."""
    wanted = [
        cells.Cell("bare", "one-device", "fit", feature)
        for feature in cells.FEATURES
        if feature in features
    ]
    results = _run_group(wanted, {}, lambda cell, result: None)
    for cell, result in results.items():
        assert result["outcome"] == "passed", f"{cell}: {result}"
    return {cell.feature: result["truth"] for cell, result in results.items()}


def _cost(group):
    return len(group) * cells.STRATEGIES[group[0].strategy].replicas


def _run_group(wanted, truth, report):
    """Run cells of one strategy and one owner, in as many groups as it takes.

    Keras's class gets the benefit of the doubt: what hung is tried once more. So does
    TensorFlow where a process died of a bad address.
    """
    results, doubted = {}, set()
    while left := [cell for cell in wanted if cell not in results]:
        for cell, result in _Group(left, truth).results():
            hung = result["outcome"] == "hung" and cell.owner == "keras"
            died = result.get("reason") == _BAD_ADDRESS
            if (hung or died) and cell not in doubted:
                doubted.add(cell)
                break
            results[cell] = result
            report(cell, result)
    return results


class _Group:
    """The processes of one strategy, at work on a list of cells of one owner.

    Each process says of each cell how it ended, and then that it is ready for the next
    one (see `worker`). One that fails to start is charged to the first cell.
    """

    def __init__(self, wanted, truth):
        self._cells = wanted
        self._owner, strategy = wanted[0].owner, wanted[0].strategy
        self._lines = queue.Queue()
        self._ended = collections.defaultdict(dict)
        self._ready = collections.defaultdict(set)
        self._exits = {}
        self._workers = []
        self._listeners = []
        job = {
            "owner": self._owner,
            "strategy": strategy,
            "cells": [_key(cell) for cell in wanted],
            "truth": truth,
        }
        for environment in processes.environments(strategy):
            self._start(environment, json.dumps(job))

    def results(self):
        """Yield each cell and its result, up to the first after which none can run."""
        try:
            self._watch(_UP, START)
            for cell in self._cells:
                self._watch(_key(cell), CELL[self._owner])
                yield cell, self._result(_key(cell))
                if len(self._ready[_key(cell)]) < len(self._workers):
                    return
        finally:
            for worker, listener in zip(self._workers, self._listeners, strict=True):
                worker.kill()
                listener.join()
                worker.close()

    def _start(self, environment, job):
        program = f"{__package__}.worker"
        worker = processes.Forked(program, job, environment=environment)
        arguments = (len(self._workers), worker)
        self._workers.append(worker)
        listener = threading.Thread(target=self._listen, args=arguments, daemon=True)
        listener.start()
        self._listeners.append(listener)

    def _listen(self, index, worker):
        """Queue what a worker says until it ends."""
        with worker.stdout as lines:
            for line in lines:
                if line.startswith("{"):
                    self._lines.put((index, json.loads(line)))
        worker.wait()
        self._lines.put((index, {"event": "exit", "code": worker.returncode}))

    def _watch(self, key, limit):
        """Wait until each worker is through with cell ``key``, or will not be."""
        deadline = time.monotonic() + limit
        while not self._through(key):
            try:
                timeout = max(0, deadline - time.monotonic())
                index, line = self._lines.get(timeout=timeout)
            except queue.Empty:
                return
            self._note(index, line)
            if self._exits or self._failures(key):
                deadline = min(deadline, time.monotonic() + PEERS)

    def _note(self, index, line):
        if line["event"] == "exit":
            self._exits[index] = line["code"]
        elif line["event"] == "end":
            self._ended[tuple(line["cell"])][index] = line
        else:
            self._ready[tuple(line["cell"])].add(index)

    def _through(self, key):
        return len(self._ready[key] | set(self._exits)) == len(self._workers)

    def _failures(self, key):
        ends = self._ended[key].values()
        return [end for end in ends if end["outcome"] != "passed"]

    def _result(self, key):
        """Return what the workers' ends say together."""
        ends, failures = self._ended[key], self._failures(key)
        if failures:
            return failures[0]
        everybody = len(self._workers)
        if len(ends) == everybody and len(self._ready[key]) < everybody:
            return self._failure("hung", "the replicas do not meet again after it")
        if len(ends) < everybody and self._exits:
            codes = ", ".join(str(code) for code in self._exits.values())
            return self._failure("crashed", f"{_ENDED} {codes}")
        if len(ends) < everybody:
            return self._failure("hung", "a process waits for ever")
        if len({end["digest"] for end in ends.values()}) > 1:
            return self._failure("failed", "the workers' weights differ")
        return ends[0]

    def _failure(self, outcome, reason):
        """Return a result with the processes' last words for a traceback."""
        for worker in self._workers:
            worker.send_signal(signal.SIGUSR1)  # those that wait say where
        time.sleep(1)
        words = [worker.errors()[-3000:] for worker in self._workers]
        return {"outcome": outcome, "reason": reason, "traceback": "\n".join(words)}


_UP = ("", "up")
_ENDED = "a process ended with status"

# Once in some hundreds of times on a busy machine TensorFlow 2.21 dies so in `fit`: the
# thread that prefetches for a strategy (`MultiDeviceBuffer::BackgroundThread`) asks a
# dataset for its dtypes (`RootDataset::output_dtypes`) that has been freed.
_BAD_ADDRESS = f"{_ENDED} -{signal.SIGSEGV:d}"


def _key(cell):
    return (cell.way, cell.feature)
