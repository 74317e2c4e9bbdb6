"""The command line: ``python -m keras_mp`` or ``keras-mp``."""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import pathlib
import re
import sys

import keras

from keras_mp import hardware
from keras_mp.bench import suite
from keras_mp.bench.workloads import WORKLOADS
from keras_mp.compare import custom, report, runner, worker
from keras_mp.compare.tasks import Job, UserError, explain
from keras_mp.conformance import bounds, discover, measure, table
from keras_mp.conformance.every import all_cases
from keras_mp.export import export as export_model
from keras_mp.export.formats import FORMATS
from keras_mp.lint import lint as lint_model
from keras_mp.loading import holds_ours, load_model

MIXED_POLICIES = ("mixed_bfloat16", "mixed_float16")


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    0: done; 1: it failed; 2: what was given cannot be used; 130: interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        return _fail(2, arguments, error)
    except runner.ChildError as error:
        return _fail(1, arguments, error)
    except KeyboardInterrupt:
        return _fail(130, arguments, "interrupted")


def _fail(code: int, arguments: argparse.Namespace, message) -> int:
    print(f"\nkeras-mp {arguments.command}: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-mp", description="Mixed-precision training for Keras 3."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_bench(commands)
    _add_conformance(commands)
    _add_export(commands)
    _add_lint(commands)
    return parser


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model in float32 and in mixed precision, side by side",
        description="Train a model in float32 and in mixed precision from the same "
        "seed, side by side; end with a table, a picture and a JSON file.",
    )
    parser.set_defaults(run=train)
    parser.add_argument(
        "--task", choices=("digits", "text"), help="built-in task (default: digits)"
    )
    parser.add_argument(
        "--policy",
        choices=("auto", *MIXED_POLICIES),
        default="auto",
        help="what to compare float32 with (default: auto, by the hardware)",
    )
    parser.add_argument("--epochs", type=_positive(int), metavar="N")
    parser.add_argument("--batch-size", type=_positive(int), metavar="N")
    parser.add_argument("--learning-rate", type=_positive(float), metavar="RATE")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--replicas",
        type=_positive(int),
        default=1,
        metavar="N",
        help="train on N GPUs, or logical CPUs, with MirroredStrategy (default: 1)",
    )
    parser.add_argument(
        "--workers",
        type=_positive(int),
        default=1,
        metavar="N",
        help="train in N processes, on a GPU each or on the CPU, with "
        "MultiWorkerMirroredStrategy (default: 1)",
    )
    parser.add_argument(
        "--output",
        default="keras_mp_runs",
        metavar="DIR",
        help="folder for the PNG and JSON files (default: keras_mp_runs)",
    )
    own = parser.add_argument_group("your own model, instead of a built-in task")
    own.add_argument("--model", metavar="FILE.keras", help="with or without compile()")
    own.add_argument(
        "--data", metavar="FILE.npz", help="arrays x, y and maybe x_val, y_val"
    )
    own.add_argument(
        "--loss",
        metavar="NAME",
        help="if the model was not compiled; instead of its own otherwise",
    )
    own.add_argument("--optimizer", metavar="NAME", help="instead of the model's own")


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure what loss scaling, casts, islands and replicas cost on this "
        "machine",
        description="Time training steps side by side, in rounds in which all "
        "candidates take turns; end with tables and a JSON file.",
    )
    parser.set_defaults(run=bench)
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: matrix products and step times on the first GPU (default: cpu)",
    )
    parser.add_argument(
        "--section",
        action="append",
        choices=tuple(suite.ON_CPU),
        help="on the CPU: only this one; may be repeated (default: optimizers)",
    )
    parser.add_argument(
        "--model",
        action="append",
        choices=tuple(WORKLOADS),
        help="only this one; may be repeated (default: all)",
    )
    parser.add_argument(
        "--policy",
        choices=("auto", "float32", *MIXED_POLICIES),
        default="auto",
        help="of the models on the CPU (default: auto, by the hardware)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive(int),
        default=15,
        metavar="N",
        help="of each instance of a model, for the median (default: 15)",
    )
    parser.add_argument(
        "--output",
        default="keras_mp_runs",
        metavar="DIR",
        help="folder for the JSON file (default: keras_mp_runs)",
    )


def _add_conformance(commands) -> None:
    parser = commands.add_parser(
        "conformance",
        help="run every layer, activation, loss and metric in 16 bits beside float32",
        description="Run every public layer, activation, loss and metric of Keras, "
        "forward and backward, in 16 bits beside float32, with Keras alone and with "
        "keras_mp; end with tables and a JSON file. Fails if one does with keras_mp, "
        "or if one has no case.",
    )
    parser.set_defaults(run=conformance)
    parser.add_argument(
        "--policy",
        action="append",
        choices=measure.POLICIES,
        help="only this one; may be repeated (default: both)",
    )
    parser.add_argument(
        "--name",
        type=_pattern,
        default=re.compile(""),
        metavar="REGEX",
        help="only cases in whose name it is found, such as ^Dense (default: all)",
    )
    parser.add_argument(
        "--output",
        default="keras_mp_runs",
        metavar="DIR",
        help="folder for the JSON file (default: keras_mp_runs)",
    )


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _add_export(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model that was trained in mixed precision as float32",
        description="Write a .keras file as a SavedModel, TFLite or ONNX artefact that "
        "computes in float32, and check that it predicts the same.",
    )
    parser.set_defaults(run=export)
    parser.add_argument("model", metavar="MODEL.keras")
    parser.add_argument(
        "output", metavar="OUT", help="FILE.tflite, FILE.onnx, or a SavedModel's folder"
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="default: by the suffix of OUT"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is there already"
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not load the artefact and compare its predictions",
    )


def _add_lint(commands) -> None:
    parser = commands.add_parser(
        "lint",
        help="say what is wrong with how a model uses low precision",
        description="Check a .keras file: a line for each layer with something wrong, "
        "with the reason and the fix. The exit status is 1 if there are errors or "
        "warnings, 0 if there are none or only notes. A file that holds objects of "
        "keras_mp's is judged as keras_mp.load_model loads it, any other one as Keras "
        "does.",
    )
    parser.set_defaults(run=lint)
    parser.add_argument("model", metavar="MODEL.keras")
    parser.add_argument(
        "--batch-size", type=_positive(int), metavar="N", help="to check as well"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array of the findings"
    )


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 2**32 - 1")
    return value


def _positive(kind: type):
    def convert(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is no finite number above 0")
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def train(arguments: argparse.Namespace) -> None:
    """Run the ``train`` command."""
    job = _job(arguments)
    folder = _output_folder(arguments.output)
    _need("matplotlib", "to draw the picture")
    if job.task == "digits":
        _need("sklearn", "because its data set of digits is the default task")
    policy, reason = choose_policy(arguments.policy)
    title = worker.TASKS[job.task].title
    names = dict.fromkeys(["float32", policy])
    show(f"keras-mp train: {title}; {' and '.join(names)} side by side")
    show(f"  policy:  {policy}. {reason}")
    runs = runner.compare(job, list(names), show)
    show("\n" + report.table(runs) + "\n")
    comparison = report.Comparison(job, title, policy, reason, runs)
    name = f"{pathlib.Path(job.model).stem if job.model else job.task}-{policy}"
    report.write_plot(comparison, folder / f"{name}.png")
    report.write_json(comparison, folder / f"{name}.json")
    show(f"wrote {folder / name}.png\nwrote {folder / name}.json")


def bench(arguments: argparse.Namespace) -> None:
    """Run the ``bench`` command."""
    folder = _output_folder(arguments.output)
    if arguments.device == "gpu":
        sections = ["gpu"]
        policy = None
    else:
        sections = arguments.section or ["optimizers"]
        policy, reason = choose_policy(arguments.policy)
        show(f"keras-mp bench: {', '.join(sections)}\n  policy:  {policy}. {reason}")
    models = arguments.model or list(WORKLOADS)
    results = suite.run(sections, models, policy, arguments.rounds, show)
    for section in sections:
        show(f"\n{suite.document(section, results)}")
    path = folder / f"bench-{'-'.join(sections)}.json"
    suite.write(path, results)
    show(f"\nwrote {path}")


def conformance(arguments: argparse.Namespace) -> int:
    """Run the ``conformance`` command; return its exit code."""
    folder = _output_folder(arguments.output)
    every = all_cases()
    cases = [case for case in every if arguments.name.search(case.title)]
    if not cases:
        raise explain(
            f"--name {arguments.name.pattern}",
            "an expression that is found in the name of a case, such as ^Dense",
            f"none of {len(every)}",
            "give another, or leave it out",
        )
    policies = arguments.policy or measure.POLICIES
    results = list(measure.measure_all(cases, policies, show=show))
    record = table.record(results)
    show(f"\n{table.document(record)}")
    path = folder / "conformance.json"
    table.write(path, record)
    show(f"\nwrote {path}")
    untested = discover.untested(every)
    if untested:
        show(f"without a case: {', '.join(untested)}")
    failing = [r for r in results if r.mode == "keras_mp" and bounds.failure(r)]
    for result in failing:
        show(
            f"fails with keras_mp: keras.{result.kind} {result.title}, "
            f"{result.scenario}, {result.policy}: {bounds.failure(result)}"
        )
    return 1 if untested or failing else 0


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


def show(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def choose_policy(wanted: str) -> tuple[str, str]:
    """The policy to train with, and why."""
    advice = hardware.recommend()
    if wanted == "auto" and advice.policy == "float32":
        return "float32", (
            f"{advice.reason} So only float32 is trained; to compare all the same, add "
            f"--policy {' or --policy '.join(MIXED_POLICIES)}."
        )
    if wanted == "auto":
        return advice.policy, advice.reason
    if wanted == advice.policy:
        return wanted, f"As asked, and as advised for this machine: {advice.reason}"
    return wanted, (
        f"As asked. It may be slow here; the advice is {advice.policy}: {advice.reason}"
    )


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


def _output_folder(path: str) -> pathlib.Path:
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".keras_mp_probe"
        with contextlib.closing(probe.open("w")):
            probe.unlink()
    except OSError as error:
        raise explain(
            f"--output {path}",
            "a folder that can be written to",
            f"{type(error).__name__}: {error.strerror}",
            "give another folder",
        ) from None
    return folder


def _need(module: str, why: str) -> None:
    if importlib.util.find_spec(module) is None:
        package = {"sklearn": "scikit-learn"}.get(module, module)
        raise explain(
            "keras-mp train",
            f"{package}, {why}",
            "a Python without it",
            "pip install matplotlib scikit-learn",
        )
