"""What each command of the command line does.

Importing it starts TensorFlow.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import json
import pathlib
import textwrap

import keras

from keras_mp import hardware, processes
from keras_mp.compare import custom, picture, report, runner, tasks, worker
from keras_mp.compare.tasks import Job
from keras_mp.export import export as export_model
from keras_mp.hardware import MIXED_POLICIES
from keras_mp.lint import lint as lint_model
from keras_mp.loading import holds_ours, load_model
from keras_mp.terminal import UserError, explain, fail, output_folder, progress, show

# Of the wide network: enough for a median, and few, since its steps are long.
WIDE = {"wide": True, "epochs": 5, "steps": 6}


def find_devices() -> None:
    """Have TensorFlow look for its devices, of which it prints lines at first."""
    hardware.gpu_names()


def run(arguments: argparse.Namespace) -> int:
    """Run the command that was given; return its exit code.

    0: done; 1: it failed; 2: what was given cannot be used.
    """
    name = f"keras-mp {arguments.command}"
    try:
        return COMMANDS[arguments.command](arguments) or 0
    except UserError as error:
        return fail(2, name, error)
    except processes.ChildError as error:
        return fail(1, name, error)


def train(arguments: argparse.Namespace) -> None:
    """Run the ``train`` command."""
    job = _job(arguments)
    folder = output_folder(arguments.output)
    _need("matplotlib", "to draw the picture")
    if job.task == "digits":
        _need("sklearn", "because its data set of digits is the default task")
    task = worker.TASKS[job.task]
    policies = [runner.BASELINE, *policies_of_train(arguments.policy)]
    native = hardware.native_policies()
    show(f"keras-mp train: {task.title}\n  compare: {', '.join(policies)}")
    epochs = tasks.with_defaults(job, task).epochs
    with progress(epochs * len(policies), "training") as advance:
        runs = runner.compare(job, policies, show, advance)
    fast = [policy for policy in policies if policy in (runner.BASELINE, *native)]
    wide = []
    if task.wider and len(fast) > 1:
        show(f"\nthe same network, {task.wider} times as wide, for its times")
        with progress(WIDE["epochs"] * len(fast), "timing") as advance:
            wide = runner.compare(
                dataclasses.replace(job, **WIDE), fast, _nothing, advance
            )
    comparison = report.Comparison(
        job, task, hardware.recommend().reason, native, runs, wide
    )
    show(f"\n{report.table(comparison)}\n")
    for sentence in report.sentences(comparison):
        show(textwrap.fill(sentence, 88, subsequent_indent="  "))
    name = pathlib.Path(job.model).stem if job.model else job.task
    name += "" if len(policies) > 2 else f"-{policies[-1]}"
    picture.write(comparison, folder / f"{name}.png")
    report.write_json(comparison, folder / f"{name}.json")
    show(f"\nwrote {folder / name}.png\nwrote {folder / name}.json")


def policies_of_train(wanted: str) -> list[str]:
    """The mixed policies to train under."""
    if wanted == "all":
        return list(MIXED_POLICIES)
    if wanted == "auto":
        wanted = hardware.recommend().policy
    return [policy for policy in MIXED_POLICIES if policy == wanted]


def _nothing(line: str) -> None:
    """Show no line."""


def export(arguments: argparse.Namespace) -> None:
    """Run the ``export`` command."""
    path = arguments.model
    custom.check_model(path, path)
    model = custom.load_model(path, path, "export", "keras_mp.export")
    try:
        done = export_model(
            model,
            arguments.output,
            arguments.format,
            verify=not arguments.no_verify,
            overwrite=arguments.overwrite,
        )
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    show(f"wrote {done.path}: {done.format}, {done.size / 1e6:.1f} MB, float32")
    if done.difference is not None:
        show(
            f"verified: predictions differ from the model's in float32 by "
            f"{done.difference:.1e} of the largest one"
        )


def lint(arguments: argparse.Namespace) -> int:
    """Run the ``lint`` command; return its exit code."""
    path = arguments.model
    custom.check_model(path, path)
    load = load_model if holds_ours(path) else keras.saving.load_model
    model = custom.load_model(path, path, "check it", "keras_mp.lint", load)
    try:
        findings = lint_model(model, arguments.batch_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if arguments.json:
        show(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            show(str(finding))
        counts = collections.Counter(finding.severity for finding in findings)
        names = ("error", "warning", "note")
        show(", ".join(f"{name}s: {counts[name]}" for name in names))
    return int(any(finding.severity != "note" for finding in findings))


def _job(arguments: argparse.Namespace) -> Job:
    """The job that was asked for, its files checked."""
    names = ("epochs", "batch_size", "learning_rate", "seed", "replicas", "workers")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.replicas > 1 and arguments.workers > 1:
        raise explain(
            f"--replicas {arguments.replicas} --workers {arguments.workers}",
            "several replicas in one process, or several processes of one replica",
            "both",
            "leave out --replicas or --workers",
        )
    own = {name: getattr(arguments, name) for name in ("model", "data")}
    compiled = {name: getattr(arguments, name) for name in ("loss", "optimizer")}
    if any(own.values()):
        if arguments.task:
            raise explain(
                f"--task {arguments.task} with --model or --data",
                "either a built-in task or your own files",
                "both",
                "leave out --task",
            )
        job = Job("custom", **options, **own, **compiled)
        custom.check_files(job)
        return job
    for name, value in compiled.items():
        if value:
            raise explain(
                f"--{name} {value}",
                "a model of your own",
                "a built-in task, which has its own",
                f"leave out --{name}, or add --model and --data",
            )
    return Job(arguments.task or "digits", **options)


def _need(module: str, why: str) -> None:
    if importlib.util.find_spec(module) is None:
        package = {"sklearn": "scikit-learn"}.get(module, module)
        raise explain(
            "keras-mp train",
            f"{package}, {why}",
            "a Python without it",
            "pip install matplotlib scikit-learn",
        )


COMMANDS = {
    "train": train,
    "export": export,
    "lint": lint,
}
