"""Layers with islands and without: what is timed is what it says, and the table."""

import inspect

import keras
import pytest

from benchmarks import islands, timing
from keras_mp import precision_lists

# `timing` has tests of its own; of interest here is what the two steps compute.
POLICIES = {"with": "mixed_bfloat16", "without": keras.DTypePolicy("mixed_bfloat16")}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", islands.CASES)
def test_steps_have_output_and_gradients(name):
    for policy in POLICIES.values():
        output, gradients = islands.layer_step(name, policy)()
        assert output.dtype in ("bfloat16", "float32")
        assert None not in gradients


@pytest.mark.parametrize(
    "name", ["Softmax", "Activation, softmax", "Dense of 1000, softmax"]
)
def test_only_the_step_with_an_island_returns_float32(name):
    outputs = {which: islands.layer_step(name, p)()[0] for which, p in POLICIES.items()}
    assert outputs["with"].dtype == "float32"
    assert outputs["without"].dtype == "bfloat16"


def _operations(step):
    graph = step.get_concrete_function().graph
    return [
        operation.type
        for operation in graph.get_operations()
        if any(output.dtype == "float32" for output in operation.outputs)
    ]


@pytest.mark.internals
@pytest.mark.parametrize("name", ["Dense of 1000, elu", "Dot, normalized", "ELU"])
def test_more_is_computed_in_float32_with_an_island(name):
    counts = {
        which: len(_operations(islands.layer_step(name, policy)))
        for which, policy in POLICIES.items()
    }
    assert counts["with"] > counts["without"]


def test_there_is_a_case_of_every_layer_on_the_lists():
    rules = [
        rule
        for rule in precision_lists.DENY + precision_lists.INSIDE
        if rule not in precision_lists.DATA
    ]
    classes = [rule if inspect.isclass(rule) else rule.layer for rule in rules]
    timed = tuple(type(case.build()) for case in islands.CASES.values())
    # Older Keras lacks the adaptive ones; what `TimeDistributed` costs is its layer's.
    missing = [c.__name__ for c in classes if not issubclass(c, timed)]
    assert all(n == "TimeDistributed" or n.startswith("Adaptive") for n in missing)


def test_table_shows_medians_ratio_and_error():
    seconds = {"without": [0.1, 0.2, 0.3, 0.4], "with": [0.11, 0.22, 0.33, 0.44]}
    timed = timing.summary([seconds], [("with", "without")])
    results = [
        {"kind": "layer", "name": "ELU"} | timed,
        {"kind": "model", "name": "wide"} | timed,
    ]
    numbers = "250.00 | 275.00 | 1.10 | 0.00 |"
    assert islands.table(results).splitlines()[2:] == [
        f"| ELU | {numbers}",
        f"| 4 Dense of width 2048 | {numbers}",
    ]
