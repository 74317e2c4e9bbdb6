"""``python -m conformance``: what 16 bits do to each part of Keras."""

import argparse
import re
import sys

from conformance import bounds, discover, measure, table
from conformance.every import all_cases
from keras_mp.terminal import UserError, explain, fail, show


def main(argv: list[str] | None = None) -> int:
    """Measure the cases that are asked for, and print tables.

    Returns:
        The exit code: 1 if a case fails with keras_mp or something has none, 2 if no
        case has the name.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        return fail(2, "python -m conformance", error)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        description="Run every public layer, activation, loss and metric of Keras, "
        "forward and backward, in 16 bits beside float32, with Keras alone and with "
        "keras_mp. Fails if one does with keras_mp, or if one has no case.",
    )
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
        "--write", action="store_true", help="write docs/conformance.*, of all cases"
    )
    return parser


def _pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _run(arguments):
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
    show(f"\n{table.document(table.record(results))}")
    if arguments.write:
        table.write_documents(results)
    return _failed(every, results)


def _failed(every, results):
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


if __name__ == "__main__":
    sys.exit(main())
