"""``python -m benchmarks``: what a step costs on this machine."""

import argparse
import sys

from benchmarks import suite
from benchmarks.workloads import WORKLOADS
from keras_mp import hardware
from keras_mp.cli import positive
from keras_mp.processes import ChildError
from keras_mp.terminal import UserError, fail, output_folder, show


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for; print tables, and write a JSON file.

    Returns:
        The exit code: 1 if a measurement fails, 2 if it cannot be made here.
    """
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except UserError as error:
        return fail(2, "python -m benchmarks", error)
    except ChildError as error:
        return fail(1, "python -m benchmarks", error)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time training steps side by side, in rounds in which all "
        "candidates take turns; end with tables and a JSON file.",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "gpu"),
        default="cpu",
        help="gpu: matrix products and step times on the first GPU (default: cpu)",
    )
    parser.add_argument(
        "--section",
        action="append",
        choices=suite.ON_CPU,
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
        choices=("auto", "float32", *hardware.MIXED_POLICIES),
        default="auto",
        help="of the models on the CPU (default: auto, by the hardware)",
    )
    parser.add_argument(
        "--rounds",
        type=positive(int),
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
    return parser


def _run(arguments):
    folder = output_folder(arguments.output)
    sections, policy = ["gpu"], None
    if arguments.device == "cpu":
        sections = arguments.section or ["optimizers"]
        policy, reason = policy_of(arguments.policy)
        show(f"benchmarks: {', '.join(sections)}\n  policy:  {policy}. {reason}")
    models = arguments.model or list(WORKLOADS)
    results = suite.run(sections, models, policy, arguments.rounds, show)
    for section in sections:
        show(f"\n{suite.document(section, results)}")
    path = folder / f"bench-{'-'.join(sections)}.json"
    suite.write(path, results)
    show(f"\nwrote {path}")


def policy_of(wanted: str) -> tuple[str, str]:
    """The policy to measure under, and why."""
    advice = hardware.recommend()
    if wanted == "auto":
        return advice
    return wanted, f"As asked; the advice is {advice.policy}: {advice.reason}"


if __name__ == "__main__":
    sys.exit(main())
