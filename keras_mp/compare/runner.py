"""Trains the precisions side by side, each in its own process, epoch by epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.connection
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_mp import hardware, processes
from keras_mp.compare import worker
from keras_mp.compare.tasks import Job
from keras_mp.tables import GAP, Cell, line, number
from keras_mp.terminal import UserError

BASELINE = "float32"

# Widths of columns: they are printed epoch by epoch, before all entries are known.
EPOCH, SCALE = 5, 11
COLUMNS = (10, 12)  # of each run: its loss and its metric


@dataclasses.dataclass
class Run:
    """The results of one precision.

    Attributes:
        policy: The name of its dtype policy.
        ready: What its process reported before training.
        epochs: The reports of ``worker.Lockstep``, one for each epoch.
    """

    policy: str
    ready: dict[str, Any]
    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def series(self, name: str) -> list[Any]:
        """Return one value for each step of the whole run."""
        return [value for report in self.epochs for value in report[name]]

    @property
    def scale(self) -> float | None:
        """The loss scale at the end; None without one."""
        return self.epochs[-1]["scales"][-1]

    @property
    def metric(self) -> str:
        """The validation metric to compare: the model's first, else the loss."""
        names = list(self.epochs[-1]["validation"])
        return next((name for name in names if name != "loss"), "loss")

    def loss(self, epoch: int) -> float | None:
        """The mean of the finite training losses of an epoch's steps."""
        return _or_none(statistics.fmean, self.epochs[epoch]["losses"])

    def step_time(self, epoch: int | None = None) -> float | None:
        """Return the median seconds per step, in an epoch or in all of them.

        Without the first step of the run, in which the model is compiled.
        """
        if epoch is None:
            return _or_none(statistics.median, self.series("seconds")[1:])
        return _or_none(statistics.median, self.epochs[epoch]["seconds"][epoch == 0 :])

    def speed_up(self, baseline: Run) -> float | None:
        """Return the median over epochs of how many times as fast steps are."""
        epochs = range(len(self.epochs))
        times = [(baseline.step_time(each), self.step_time(each)) for each in epochs]
        ratios = [above / below for above, below in times if above and below]
        return _or_none(statistics.median, ratios)


def _or_none(
    average: Callable[[list[float]], float], values: Sequence[float | None]
) -> float | None:
    """Return the average of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return average(known) if known else None


def compare(
    job: Job,
    policies: list[str],
    show: Callable[[str], None] = lambda line: None,
    advance: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Train under each policy in turn, epoch by epoch.

    Args:
        job: What to train.
        policies: The names of dtype policies.
        show: Called with each line: what is trained, then the results of each epoch.
        advance: Called after each epoch of each policy.

    Returns:
        A `Run` for each policy.

    Raises:
        UserError: What the user gave cannot be used.
        processes.ChildError: A process ended too soon.
    """
    addresses = processes.free_addresses(len(policies) * job.workers)
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
                    advance()
                if epoch == 0:
                    show(_heading(runs))
                show(_line(runs, epoch))
    return runs


@dataclasses.dataclass
class Team:
    """The processes of one precision; more than one only with ``--workers``."""

    policy: str
    children: list[processes.Child]

    def go(self) -> None:
        """Start the next epoch."""
        for child in self.children:
            with contextlib.suppress(BrokenPipeError):  # then wait() says what happened
                child.connection.send("go")

    def wait(self, kind: str) -> dict[str, Any]:
        """Wait for a message of every worker; return the content of the first one's.

        Args:
            kind: The kind of message to expect.
        """
        contents: dict[str, Any] = {}
        while len(contents) < len(self.children):
            waiting = [each for each in self.children if each.name not in contents]
            ready = multiprocessing.connection.wait([c.connection for c in waiting])
            for child in waiting:
                if child.connection in ready:
                    contents[child.name] = self._receive(child, kind)
        return contents[self.children[0].name]

    def _receive(self, child: processes.Child, kind: str) -> Any:
        try:
            received, content = child.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended(child) from None
        if received == "refused":
            raise UserError(content)
        assert received == kind, (received, kind)
        return content

    def _ended(self, child: processes.Child) -> processes.ChildError:
        child.process.join(10)
        # If one was killed, the others fail after it: the killed one is to be reported.
        codes = {each.name: each.process.exitcode for each in self.children}
        ended = [each for each in self.children if codes[each.name] is not None]
        child = min(ended, key=lambda each: codes[each.name] or 0, default=child)
        return child.error()


@contextlib.contextmanager
def _team(job: Job, policy: str, addresses: list[str], folder: str) -> Iterator[Team]:
    """Start the processes that train under the policy, and end them after the block."""
    children, variables = [], variables_of(policy)
    try:
        for index in range(job.workers):
            name = f"worker {index} of " * (job.workers > 1) + f"the {policy} run"
            arguments = (job, policy, addresses, index)
            children.append(
                processes.start(
                    name, folder, worker.main, *arguments, variables=variables
                )
            )
        yield Team(policy, children)
    finally:
        for child in children:
            child.connection.close()
        for child in children:
            child.end()


def variables_of(policy: str) -> dict[str, str]:
    """Return the environment variables of a run that this process does not have.

    TensorFlow asks the processor whether oneDNN can compute in bfloat16. If
    ``ONEDNN_MAX_CPU_ISA`` forbids it, oneDNN fails; TensorFlow's own kernels do not.
    """
    hidden = hardware.cpu_flags() & hardware.hidden_cpu_flags()
    emulated = policy not in hardware.native_policies() and policy != BASELINE
    return {"TF_ENABLE_ONEDNN_OPTS": "0"} if hidden and emulated else {}


def _preamble(ready: dict[str, Any]) -> list[str]:
    return [
        f"  device:  {ready['device']}",
        *(f"  note:    {note}" for note in ready["notes"]),
        f"  model:   {ready['parameters']:,} parameters; {ready['epochs']} epochs of "
        f"{ready['steps_per_epoch']} steps, batch size {ready['batch_size']}",
    ]


def _heading(runs: list[Run]) -> str:
    pair = sum(COLUMNS) + len(GAP)
    names = [run.policy.center(pair) for run in runs]
    above = line(["", *names], [EPOCH, *[pair] * len(runs)])
    metric = f"val {runs[0].metric}"[: COLUMNS[1]]
    cells: list[Cell] = ["epoch", *["loss", metric] * len(runs)]
    return f"\n{above}\n{_row(cells, 'loss scale' if runs[-1].scale else None)}"


def _line(runs: list[Run], epoch: int) -> str:
    cells: list[Cell] = [str(epoch + 1).rjust(EPOCH)]
    for run in runs:
        value = run.epochs[epoch]["validation"].get(run.metric)
        cells += [number(run.loss(epoch), "#.5g"), number(value, "#.5g")]
    return _row(cells, number(runs[-1].epochs[epoch]["scales"][-1], ",g"))


def _row(cells: list[Cell], scale: Cell) -> str:
    """Return the line of an epoch, without a last column if there is no scale."""
    widths = [EPOCH, *COLUMNS * (len(cells) // 2), SCALE]
    return line([*cells, scale or ""], widths)
