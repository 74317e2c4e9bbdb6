"""Run cells in this process, one after the other, and print JSON lines about each.

Started by `runner` with the cells on the command line. A first line says how a cell
ended. A second one says that the replicas still meet in an all-reduce, so that the next
cell is not charged with this one's wreckage.
"""

import faulthandler
import json
import pathlib
import re
import signal
import sys
import tempfile
import textwrap
import time
import traceback

from . import cells, processes


def main():
    faulthandler.enable()  # where a process dies that crashes
    faulthandler.register(signal.SIGUSR1)  # where a process waits that hangs
    job = json.loads(sys.argv[1])
    strategy = processes.make_strategy(job["strategy"])
    with tempfile.TemporaryDirectory() as folder:
        _meet(strategy)
        _say(("", "up"), event="ready")
        for way, feature in job["cells"]:
            _run(job, strategy, way, feature, pathlib.Path(folder))


def _run(job, strategy, way, feature, folder):
    from . import scenarios, trial

    truth = job["truth"].get(feature, {})
    here = trial.Trial(job["owner"], strategy, way, truth, folder)
    start = time.monotonic()
    try:
        getattr(scenarios, feature)(here)
        outcome = {"outcome": "passed", "digest": here.digest, "truth": here.truth}
    except Exception as error:
        outcome = _judge(job["owner"], feature, error)
    seconds = round(time.monotonic() - start, 2)
    _say((way, feature), event="end", seconds=seconds, **outcome)
    _meet(strategy)
    _say((way, feature), event="ready")


def _judge(owner, feature, error):
    """Return what an exception says of the cell."""
    if isinstance(error, AssertionError):
        outcome = "failed"
    elif owner == "ours" and _is_refusal(error):
        outcome = "refused"
    elif owner == "keras" and cells.OPTIONS.get(feature, "\0") in str(error):
        outcome = "no such option"
    else:
        outcome = "crashed"
    trace = "".join(traceback.format_exception(error))
    return {"outcome": outcome, "reason": _reason(error), "traceback": trace[-6000:]}


def _is_refusal(error):
    """Return whether keras_mp itself says no, and what to do instead."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    ours = "keras_mp" in pathlib.Path(innermost.filename).parts
    refusing = isinstance(error, ValueError | TypeError | NotImplementedError)
    return refusing and ours and _ALTERNATIVE.search(str(error)) is not None


_ALTERNATIVE = re.compile(r"\b(use|pass|call|set|give|create|train|instead)\b", re.I)

# Lines of TensorFlow's and Keras's messages that only say where, or nothing.
_EMPTY = re.compile(
    r"Graph execution error|Exception encountered|Detected at node|File \"|\[\[|"
    r"\d+ root error|<|$"
)
# What differs from run to run, or from machine to machine.
_NOISE = re.compile(
    r"\x1b\[\d*m|\{\{.*?\}\} ?|\(defined @ .*?\) |(?<=\w)[_/]+\d+\b|"
    r"(?<=\(PerReplica):\{.*"
)


def _reason(error):
    """Return what an exception says, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = " ".join(line for line in lines if not _EMPTY.match(line))
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return textwrap.shorten(kind + _NOISE.sub("", telling), 160, placeholder=" ...")


def _meet(strategy):
    """Check that an all-reduce over all replicas works."""
    import tensorflow as tf

    ones = strategy.run(lambda: tf.constant(1.0))
    total = strategy.reduce("SUM", ones, axis=None)
    assert float(total) == strategy.num_replicas_in_sync


def _say(cell, **line):
    print(json.dumps(line | {"cell": cell}), flush=True)


if __name__ == "__main__":
    main()
