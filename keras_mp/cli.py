"""The command line: ``python -m keras_mp`` or ``keras-mp``.

It is read before TensorFlow starts, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from keras_mp.hardware import MIXED_POLICIES
from keras_mp.terminal import fail, quiet_start

# The formats of `keras_mp.export`, whose import starts TensorFlow.
FORMATS = ("saved_model", "tflite", "onnx")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done; 1: it failed; 2: what was given cannot be used; 130: interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        with quiet_start():
            from keras_mp import commands

            commands.find_devices()
        return commands.run(arguments)
    except KeyboardInterrupt:
        return fail(130, f"keras-mp {arguments.command}", "interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-mp", description="Mixed-precision training for Keras 3."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_export(commands)
    _add_lint(commands)
    _add_diagnose(commands)
    _add_replay(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model in float32 and in mixed precision, side by side",
        description="Train a model in float32 and in mixed precision from the same "
        "seed, side by side; end with a table, a picture and a JSON file.",
    )
    parser.add_argument(
        "--task", choices=("digits", "text"), help="built-in task (default: digits)"
    )
    parser.add_argument(
        "--policy",
        choices=("all", "auto", *MIXED_POLICIES),
        default="all",
        help="what to compare float32 with (default: all; auto: by the hardware)",
    )
    parser.add_argument("--epochs", type=positive(int), metavar="N")
    parser.add_argument("--batch-size", type=positive(int), metavar="N")
    parser.add_argument("--learning-rate", type=positive(float), metavar="RATE")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--replicas",
        type=positive(int),
        default=1,
        metavar="N",
        help="train on N GPUs, or logical CPUs, with MirroredStrategy (default: 1)",
    )
    parser.add_argument(
        "--workers",
        type=positive(int),
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


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model that was trained in mixed precision as float32",
        description="Write a .keras file as a SavedModel, TFLite or ONNX artefact that "
        "computes in float32, and check that it predicts the same.",
    )
    parser.add_argument("model", metavar="MODEL.keras")
    parser.add_argument(
        "output", metavar="OUT", help="FILE.tflite, FILE.onnx, or a SavedModel's folder"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="default: by the suffix of OUT"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is there already"
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not load the artefact and compare its predictions",
    )


def _add_lint(commands: Any) -> None:
    parser = commands.add_parser(
        "lint",
        help="say what is wrong with how a model uses low precision",
        description="Check a .keras file: a line for each layer with something wrong, "
        "with the reason and the fix. The exit status is 1 if there are errors or "
        "warnings, 0 if there are none or only notes. A file with objects of keras_mp "
        "is loaded by keras_mp.load_model before the check, any other file by Keras.",
    )
    parser.add_argument("model", metavar="MODEL.keras")
    parser.add_argument(
        "--batch-size", type=positive(int), metavar="N", help="to check as well"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array of the findings"
    )


def _add_diagnose(commands: Any) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="say which layer of a model went wrong on a batch",
        description="Run one batch through a model of a .keras file, forward and "
        "backward, and say which layer went wrong, where, and what to do. The exit "
        "status is 1 if anything did, and 0 for a clean batch. The file is loaded as "
        "`keras-mp lint` does.",
    )
    parser.add_argument("model", metavar="MODEL.keras")
    parser.add_argument(
        "--data",
        metavar="FILE.npz",
        required=True,
        help="arrays x, y and maybe sample_weight; or x_NAME for each input, y_NAME "
        "and maybe sample_weight_NAME for each output",
    )
    parser.add_argument(
        "--batch-size",
        type=positive(int),
        default=32,
        metavar="N",
        help="how many of the samples, from the first (default: 32)",
    )
    parser.add_argument(
        "--scale",
        type=positive(float),
        metavar="S",
        help="the loss scale (default: that of the model's optimizer)",
    )
    parser.add_argument(
        "--loss",
        metavar="NAME",
        help="if the model was not compiled; instead of its own otherwise",
    )
    parser.add_argument(
        "--json", action="store_true", help="print everything as a JSON object"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw the ranges of all layers beside those of the formats",
    )


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="repeat a step that overflowed, from a file of FlightRecorder",
        description="Repeat a training step that keras_mp.callbacks.FlightRecorder "
        "wrote, with its batch, random numbers and loss scale, and print what went "
        "wrong. The exit status is 1 if anything does, and 0 if the step is clean. The "
        "model is loaded as `keras-mp lint` does.",
    )
    parser.add_argument("file", metavar="FILE", help="overflow-....npz")
    parser.add_argument(
        "--model",
        metavar="MODEL.keras",
        required=True,
        help="the model of that training, as it was before the step or nearest to it",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the diagnosis as a JSON object"
    )


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 2**32 - 1")
    return value


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """Return a function that converts an argument to a finite number above 0."""

    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert
