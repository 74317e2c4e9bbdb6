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
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_mp import data_files, flight, hardware, model_files, processes
from keras_mp.compare import custom, picture, report, runner, tasks, worker
from keras_mp.compare.tasks import Job
from keras_mp.diagnosis import Diagnosis
from keras_mp.diagnosis import diagnose as diagnose_model
from keras_mp.export import export as export_model
from keras_mp.hardware import MIXED_POLICIES
from keras_mp.lint import lint as lint_model
from keras_mp.loading import holds_ours, load_model
from keras_mp.terminal import UserError, explain, fail, output_folder, progress, show

# How the wide network is trained: enough steps for a median, but few, as they are long.
WIDE_EPOCHS, WIDE_STEPS = 5, 6


def find_devices() -> None:
    """Make TensorFlow look for its devices, about which it prints lines once."""
    hardware.gpu_names()


def run(arguments: argparse.Namespace) -> int:
    """Run a command and return its exit code.

    0: done; 1: it failed; 2: what was given cannot be used.
    """
    name = f"keras-mp {arguments.command}"
    try:
        return COMMANDS[arguments.command](arguments) or 0
    except UserError as error:
        return fail(2, name, error)
    except (processes.ChildError, OSError) as error:  # such as of a full disk
        return fail(1, name, error)


def train(arguments: argparse.Namespace) -> None:
    """Run the ``train`` command."""
    job = _job(arguments)
    folder = output_folder(arguments.output)
    _need("keras-mp train", "matplotlib", "to draw the picture")
    if job.task == "digits":
        _need(
            "keras-mp train",
            "sklearn",
            "because its data set of digits is the default task",
        )
    task = worker.TASKS[job.task]
    policies = [runner.BASELINE, *policies_of_train(arguments.policy)]
    native = hardware.native_policies()
    show(f"keras-mp train: {task.title}\n  compare: {', '.join(policies)}")
    with progress(job.epochs * len(policies), "training") as advance:
        runs = runner.compare(job, policies, show, advance)
    wide = _time_wide_network(job, task, policies, native)
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


def _time_wide_network(
    job: Job, task: tasks.Task, policies: list[str], native: tuple[str, ...]
) -> list[runner.Run]:
    """Train the task's wide network in float32 and in what is native, for its times."""
    fast = [policy for policy in policies if policy in (runner.BASELINE, *native)]
    if task.wider == 1 or len(fast) == 1:
        return []
    show(f"\nthe same network, {task.wider} times as wide, for its times")
    job = dataclasses.replace(job, wide=True, epochs=WIDE_EPOCHS, steps=WIDE_STEPS)
    with progress(job.epochs * len(fast), "timing") as advance:
        return runner.compare(job, fast, advance=advance)


def policies_of_train(wanted: str) -> list[str]:
    """Return the mixed policies to train under.

    Args:
        wanted: A policy's name, ``"all"`` or ``"auto"``.
    """
    if wanted == "all":
        return list(MIXED_POLICIES)
    if wanted == "auto":
        wanted = hardware.recommend().policy
    return [policy for policy in MIXED_POLICIES if policy == wanted]


def export(arguments: argparse.Namespace) -> None:
    """Run the ``export`` command."""
    path = arguments.model
    model = model_files.load(path, path, "export", "keras_mp.export")
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
    show(f"wrote {done.path}: {done.format}, {done.size / 1e3:,.0f} kB, float32")
    if done.difference is not None:
        show(
            f"verified: predictions differ from the model's in float32 by "
            f"{done.difference:.1e} of the largest one"
        )


def lint(arguments: argparse.Namespace) -> int:
    """Run the ``lint`` command; return its exit code."""
    path = arguments.model
    model = model_files.load(path, path, "check it", "keras_mp.lint", _load_as_saved)
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


def diagnose(arguments: argparse.Namespace) -> int:
    """Run the ``diagnose`` command; return its exit code."""
    path, called = arguments.model, f"--data {arguments.data}"
    if arguments.plot:
        _need("keras-mp diagnose --plot", "matplotlib", "to draw the picture")
    model = model_files.load(
        path, path, "diagnose it", "keras_mp.diagnose", _load_as_saved
    )
    arrays = data_files.read_batch(arguments.data, called, _names_of_arrays(model))
    batch = keras.tree.map_structure(lambda each: each[: arguments.batch_size], arrays)
    loss = None
    if arguments.loss or not model.compiled:
        loss = _of_each_output(custom.loss_of(arguments.loss, path))
    try:
        found = diagnose_model(
            model, **_as_taken(model, batch), scale=arguments.scale, loss=loss
        )
    except Exception as error:
        called = f"{path} {called}"
        x, y = batch["x"], batch["y"]
        raise custom.does_not_fit(called, model, x, y, error) from None
    show(found.to_json() if arguments.json else str(found))
    if arguments.plot:
        _write_picture(found, arguments.plot)
    return int(bool(found.culprits))


def _names_of_arrays(model: keras.Model) -> dict[str, list[str]]:
    """Return the names that the arrays of each part of a batch may have.

    Those of the inputs and outputs of a Functional model. Outputs that are a dict have
    its keys as names. Other models have no names.
    """
    inputs, outputs = [], []
    if hasattr(model, "output_names"):
        inputs = [each.name for each in model.inputs]
        is_dict = isinstance(model.output, dict)
        outputs = list(model.output if is_dict else model.output_names)
    return {"x": inputs, "y": outputs, "sample_weight": outputs}


def _as_taken(model: keras.Model, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with each dict of arrays in the structure that Keras takes.

    Keras refuses dicts of weights where outputs are a list.
    """

    def packed(part: str, arrays: Any) -> Any:
        if not isinstance(arrays, dict):
            return arrays
        structure = model.input if part == "x" else model.output
        if isinstance(structure, dict):
            return arrays
        return keras.tree.pack_sequence_as(structure, list(arrays.values()))

    return {part: packed(part, arrays) for part, arrays in batch.items()}


def _of_each_output(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a loss is for outputs in any structure, as after `keras_mp.compile`.

    The sum of the means over the outputs, in float32.
    """

    def total(y: Any, y_pred: Any) -> Any:
        y_pred = keras.tree.map_structure(
            lambda each: ops.cast(each, "float32"), y_pred
        )
        pairs = zip(keras.tree.flatten(y), keras.tree.flatten(y_pred), strict=True)
        return sum(ops.mean(loss(*pair)) for pair in pairs)

    return total


def _write_picture(found: Diagnosis, path: str) -> None:
    try:
        found.plot(path)
    except (OSError, ValueError) as error:
        raise explain(
            f"--plot {path}",
            "a file to write, of a kind that matplotlib knows by its suffix",
            model_files.on_one_line(error),
            "give another file, such as ranges.png in a folder that there is",
        ) from None


def replay(arguments: argparse.Namespace) -> int:
    """Run the ``replay`` command; return its exit code."""
    file, path = arguments.file, arguments.model
    try:
        recorded = flight.read(file)
    except ValueError as error:
        raise UserError(str(error)) from None
    model = model_files.load(path, path, "replay it", "keras_mp.replay", _load_as_saved)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            found = flight.replayed(recorded, file, model)
        except ValueError as error:
            raise UserError(str(error)) from None
    if arguments.json:
        show(found.to_json())
        return int(bool(found.culprits))
    show(recorded.text())
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            show(textwrap.fill(f"warning: {warning.message}", 88))
    show(f"\nnow:\n{found}")
    return int(bool(found.culprits))


def _load_as_saved(path: str) -> keras.Model:
    """Load a model as `keras_mp.load_model` does if it was made with keras_mp."""
    return load_model(path) if holds_ours(path) else keras.saving.load_model(path)


def _job(arguments: argparse.Namespace) -> Job:
    """Return the job that the options describe, after a check of its files."""
    names = ("learning_rate", "seed", "replicas", "workers")
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
        options |= own | compiled
    else:
        for name, value in compiled.items():
            if value:
                raise explain(
                    f"--{name} {value}",
                    "a model of your own",
                    "a built-in task, which has its own",
                    f"leave out --{name}, or add --model and --data",
                )
    name = "custom" if any(own.values()) else arguments.task or "digits"
    task = worker.TASKS[name]
    epochs = arguments.epochs or task.epochs
    job = Job(name, epochs, arguments.batch_size or task.batch_size, **options)
    if name == "custom":
        custom.check_files(job)
    return job


def _need(called: str, module: str, why: str) -> None:
    """Raise UserError if ``module`` is not installed."""
    if importlib.util.find_spec(module) is None:
        package = {"sklearn": "scikit-learn"}.get(module, module)
        raise explain(
            called,
            f"{package}, {why}",
            "a Python without it",
            "pip install matplotlib scikit-learn",
        )


COMMANDS = {
    "train": train,
    "export": export,
    "lint": lint,
    "diagnose": diagnose,
    "replay": replay,
}
