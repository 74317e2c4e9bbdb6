"""Runs the precisions side by side, in processes of their own, in lockstep."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from keras_mp.compare import worker
from keras_mp.compare.tasks import Job, UserError

BASELINE = "float32"


class ChildError(Exception):
    """A training process ended before its work was done."""


@dataclasses.dataclass
class Run:
    """What one precision did.

    Attributes:
        policy: its dtype policy.
        ready: what its process said of itself before training.
        epochs: the reports of ``worker.Lockstep``, one for each epoch.
    """

    policy: str
    ready: dict
    epochs: list[dict] = dataclasses.field(default_factory=list)

    def series(self, name: str) -> list:
        """One value for each step of the whole run."""
        return [value for report in self.epochs for value in report[name]]

    @property
    def metric(self) -> str:
        """The validation metric to compare: the model's first, else the loss."""
        names = list(self.epochs[-1]["validation"])
        return next((name for name in names if name != "loss"), "loss")

    def loss(self, epoch: int) -> float | None:
        """The mean training loss of the steps of an epoch that were not skipped."""
        return _or_none(statistics.fmean, self.epochs[epoch]["losses"])

    def step_time(self, epoch: int | None = None) -> float | None:
        """Median seconds per step in an epoch, or in all; not the run's first step,
        which compiles."""
        if epoch is None:
            return _or_none(statistics.median, self.series("seconds")[1:])
        return _or_none(statistics.median, self.epochs[epoch]["seconds"][epoch == 0 :])


def speed_ups(runs: list[Run]) -> list[float | None]:
    """Float32's time per step over mixed precision's, epoch by epoch."""
    return [_speed_up_in(runs, epoch) for epoch in range(len(runs[-1].epochs))]


def _speed_up_in(runs: list[Run], epoch: int) -> float | None:
    first, second = (run.step_time(epoch) for run in runs)
    return first / second if first and second else None


def speed_up(runs: list[Run]) -> float | None:
    """The median of the epochs' speed-ups."""
    return _or_none(statistics.median, speed_ups(runs))


def _or_none(average: Callable, values: list) -> float | None:
    values = [value for value in values if value is not None]
    return average(values) if values else None


def compare(job: Job, policies: list[str], show: Callable[[str], None]) -> list[Run]:
    """Train under each policy in turn, epoch by epoch; show one line per epoch."""
    addresses = _free_addresses(len(policies) * job.workers)
    with tempfile.TemporaryDirectory(prefix="keras_mp_") as folder:
        with contextlib.ExitStack() as stack:
            teams = [
                stack.enter_context(
                    _team(job, policy, addresses[i :: len(policies)], folder)
                )
                for i, policy in enumerate(policies)
            ]
            runs = [Run(team.policy, team.wait("ready")) for team in teams]
            for line in _preamble(runs[0].ready):
                show(line)
            for epoch in range(runs[0].ready["epochs"]):
                for run, team in zip(runs, teams, strict=True):
                    team.go()
                    run.epochs.append(team.wait("epoch"))
                if epoch == 0:
                    show(_heading(runs))
                show(_line(runs, epoch))
    return runs


def _free_addresses(count: int) -> list[str]:
    """Different addresses on this machine that nobody listens at just now."""
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        names = [stack.enter_context(server).getsockname() for server in servers]
    return [f"{host}:{port}" for host, port in names]


@dataclasses.dataclass
class Child:
    """A training process, as its parent sees it."""

    name: str
    process: multiprocessing.Process
    connection: Connection
    log: str

    def end(self) -> None:
        """Make sure that it is gone, once its connection is closed."""
        self.process.join(0.5)
        self.process.kill()  # TensorFlow's server catches SIGTERM
        self.process.join()


@dataclasses.dataclass
class Team:
    """The processes of one precision: the workers, of which most runs have one."""

    policy: str
    children: list[Child]

    def go(self) -> None:
        """Start the next epoch."""
        for child in self.children:
            with contextlib.suppress(BrokenPipeError):  # then wait() says what happened
                child.connection.send("go")

    def wait(self, kind: str) -> dict:
        """The content of worker 0's next message, once all sent one, of this kind."""
        contents = {}
        waiting = {child.connection: child for child in self.children}
        while waiting:
            for connection in multiprocessing.connection.wait(list(waiting)):
                child = waiting.pop(connection)
                try:
                    received, contents[child.name] = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise self._ended(child) from None
                if received == "refused":
                    raise UserError(contents[child.name])
                assert received == kind, (received, kind)
        return contents[self.children[0].name]

    def _ended(self, child: Child) -> ChildError:
        child.process.join(10)
        # Peers of one that was killed fail: they are not the ones to tell of.
        ended = [each for each in self.children if each.process.exitcode is not None]
        child = min(ended, key=lambda each: each.process.exitcode, default=child)
        code = child.process.exitcode
        with open(child.log, errors="replace") as file:
            tail = file.read().strip().splitlines()[-15:]
        hint = " (killed: probably out of memory)" if code == -signal.SIGKILL else ""
        return ChildError(
            f"{child.name} ended with exit code {code}{hint} before it was "
            "done. The last lines it wrote:\n"
            + "\n".join(f"  | {line}" for line in tail or ["(nothing)"])
        )


@contextlib.contextmanager
def _team(job: Job, policy: str, addresses: list[str], folder: str) -> Iterator[Team]:
    """Processes that train under the policy, one an address, ended on the way out."""
    children = []
    try:
        for index in range(job.workers):
            name = f"worker {index} of " * (job.workers > 1) + f"the {policy} run"
            children.append(_start(name, folder, job, policy, addresses, index))
        yield Team(policy, children)
    finally:
        for child in children:
            child.connection.close()
        for child in children:
            child.end()


def _start(name: str, folder: str, *arguments) -> Child:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.main, args=(theirs, *arguments))
    log = os.path.join(folder, name)
    with _as_for_child(log):
        process.start()
    theirs.close()
    return Child(name, process, ours, log)


@contextlib.contextmanager
def _as_for_child(log: str) -> Iterator[None]:
    """What a child inherits: no Ctrl-C (its parent ends it), stderr in a file."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        signal.signal(signal.SIGINT, interrupt)


def _preamble(ready: dict) -> list[str]:
    return [
        f"  device:  {ready['device']}",
        *(f"  note:    {note}" for note in ready["notes"]),
        f"  model:   {ready['parameters']:,} parameters; {ready['epochs']} epochs of "
        f"{ready['steps_per_epoch']} steps, batch size {ready['batch_size']}",
    ]


def _heading(runs: list[Run]) -> str:
    metric = f"val {runs[0].metric}"[:14]
    names = "".join(f"{run.policy:^35}" for run in runs)
    columns = "".join(f" {'loss':>9} {metric:>14} {'ms/step':>9}" for _ in runs)
    ratio = "  speed-up" if len(runs) > 1 else ""
    return f"\n{'':5}{names.rstrip()}\nepoch{columns}{ratio}"


def _line(runs: list[Run], epoch: int) -> str:
    text = f"{epoch + 1:>5}"
    for run in runs:
        time = run.step_time(epoch)
        value = run.epochs[epoch]["validation"].get(run.metric)
        text += (
            f" {number(run.loss(epoch), '#.5g'):>9} {number(value, '#.5g'):>14} "
            f"{number(time and time * 1000, '.1f'):>9}"
        )
    if len(runs) > 1:
        text += f"  {number(_speed_up_in(runs, epoch), '.2f', 'x'):>8}"
    return text


def number(value: float | None, form: str, unit: str = "") -> str:
    """The number in the given form with its unit; a dash if there is none."""
    return "-" if value is None else format(value, form) + unit
