"""Runs the precisions side by side, in processes of their own, in lockstep."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.connection
import statistics
import tempfile
from collections.abc import Callable, Iterator

from keras_mp import hardware, processes
from keras_mp.compare import worker
from keras_mp.compare.tasks import Job
from keras_mp.terminal import UserError

BASELINE = "float32"


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
        """Median seconds per step in an epoch, or in all; not the run's first step,
        which compiles."""
        if epoch is None:
            return _or_none(statistics.median, self.series("seconds")[1:])
        return _or_none(statistics.median, self.epochs[epoch]["seconds"][epoch == 0 :])

    def speed_ups(self, baseline: Run) -> list[float | None]:
        """The baseline's time per step over this one's, epoch by epoch."""
        return [self._speed_up(baseline, epoch) for epoch in range(len(self.epochs))]

    def speed_up(self, baseline: Run) -> float | None:
        """The median of the epochs' speed-ups."""
        return _or_none(statistics.median, self.speed_ups(baseline))

    def _speed_up(self, baseline, epoch):
        above, below = baseline.step_time(epoch), self.step_time(epoch)
        return above / below if above and below else None


def _or_none(average: Callable, values: list) -> float | None:
    values = [value for value in values if value is not None]
    return average(values) if values else None


def compare(
    job: Job,
    policies: list[str],
    show: Callable[[str], None],
    advance: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Train under each policy in turn, epoch by epoch.

    Args:
        job: What to train.
        policies: The names of dtype policies.
        show: Takes lines: what is trained, then one for each epoch.
        advance: Is called after each epoch of each policy.
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
    """The processes of one precision: the workers, of which most runs have one."""

    policy: str
    children: list[processes.Child]

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

    def _ended(self, child: processes.Child) -> processes.ChildError:
        child.process.join(10)
        # Peers of one that was killed fail: they are not the ones to tell of.
        ended = [each for each in self.children if each.process.exitcode is not None]
        child = min(ended, key=lambda each: each.process.exitcode, default=child)
        return child.error()


@contextlib.contextmanager
def _team(job: Job, policy: str, addresses: list[str], folder: str) -> Iterator[Team]:
    """Processes that train under the policy, one an address, ended on the way out."""
    children, variables = [], variables_of(policy)
    try:
        for index in range(job.workers):
            name = f"worker {index} of " * (job.workers > 1) + f"the {policy} run"
            place = (job, policy, addresses, index)
            children.append(
                processes.start(name, folder, worker.main, *place, variables=variables)
            )
        yield Team(policy, children)
    finally:
        for child in children:
            child.connection.close()
        for child in children:
            child.end()


def variables_of(policy: str) -> dict[str, str]:
    """What the environment of a run needs beside this process's.

    TensorFlow asks the processor whether oneDNN can compute in bfloat16. Where oneDNN
    is told not to, it fails; TensorFlow's own kernels do not.
    """
    hidden = hardware.cpu_flags() & hardware.hidden_cpu_flags()
    emulated = policy not in hardware.native_policies() and policy != BASELINE
    return {"TF_ENABLE_ONEDNN_OPTS": "0"} if hidden and emulated else {}


def _preamble(ready: dict) -> list[str]:
    return [
        f"  device:  {ready['device']}",
        *(f"  note:    {note}" for note in ready["notes"]),
        f"  model:   {ready['parameters']:,} parameters; {ready['epochs']} epochs of "
        f"{ready['steps_per_epoch']} steps, batch size {ready['batch_size']}",
    ]


def _heading(runs: list[Run]) -> str:
    metric = f"val {runs[0].metric}"[:14]
    names = "".join(f"{run.policy:^26}" for run in runs)
    columns = "".join(f" {'loss':>10} {metric:>14}" for _ in runs)
    scale = f" {'loss scale':>11}" if runs[-1].scale else ""
    return f"\n{'':5}{names.rstrip()}\nepoch{columns}{scale}"


def _line(runs: list[Run], epoch: int) -> str:
    text = f"{epoch + 1:>5}"
    for run in runs:
        value = run.epochs[epoch]["validation"].get(run.metric)
        text += f" {number(run.loss(epoch), '#.5g'):>10} {number(value, '#.5g'):>14}"
    scale = runs[-1].epochs[epoch]["scales"][-1]
    return text + (f" {number(scale, ',g'):>11}" if scale else "")


def number(value: float | None, form: str, unit: str = "") -> str:
    """The number in the given form with its unit; a dash if there is none."""
    return "-" if value is None else format(value, form) + unit
