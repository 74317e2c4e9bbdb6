"""A diagnosis in a terminal: lines that fit, layers as a tree, culprits marked."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.diagnosis.report import Diagnosis

LONG = "a_very_long_name_of_a_layer_that_nobody_would_write_by_hand_but_code_does"


def diagnosis_of(names, factor=1.0, scale=None):
    with keras_mp.policy_scope("mixed_float16"):
        block = keras.Sequential([layers.Dense(8, name=n) for n in names], name="block")
        model = keras.Sequential(
            [keras.Input((8,)), block, layers.Dense(1)], name="net"
        )
    keras_mp.compile(model, "sgd", "mse")
    kernel = block.layers[0].kernel
    kernel.assign(kernel * factor)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    return keras_mp.diagnose(model, x, x[:, :1], scale=scale)


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_lines_fit_and_have_no_space_at_the_end(factor):
    lines = str(diagnosis_of(["first", LONG], factor)).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line != line.rstrip()] == []


def test_layers_are_a_tree_with_culprits_marked():
    lines = str(diagnosis_of(["first", "second"], 1e6)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  layer"))
    table = lines[start + 1 : start + 6]
    first_column = [line.split("float")[0].rstrip() for line in table]
    assert first_column == [
        "  net",
        "    block",
        ">     first",
        "      second",
        "    dense",
    ]
    assert lines[-1] == "> a culprit"
    assert "1. net/block/first, output (forward): overflow; " in "\n".join(lines)


@pytest.mark.parametrize("scale, shown", [(8.0, "8"), (2.0**24, "2**24"), (0.3, "0.3")])
def test_scales_can_be_copied(scale, shown):
    lines = str(diagnosis_of(["first"], scale=scale)).splitlines()
    assert lines[1].split() == ["loss", "scale", shown]


def test_what_is_lost_to_underflow():
    def shown(found):
        return str(found).splitlines()[3].removeprefix("lost to underflow").strip()

    assert shown(diagnosis_of(["first"], scale=8.0)) == "0.00% of the gradients"
    found = diagnosis_of(["first"], scale=2.0**-30)
    assert shown(found) == f"{found.underflow:.2%} of the gradients"
    assert found.underflow > 0.9
    overflowed = diagnosis_of(["first"], 1e6)
    assert shown(overflowed) == "unknown, because the loss is not finite"
    assert json.loads(overflowed.to_json())["underflow"] is None


@pytest.mark.parametrize(
    "safe, expected",
    [
        (16.0, "16 (1 bit of room)"),
        (8.0, "8 (no room left)"),
        (2.0, "2 (the loss scale is 2 bits too large)"),
        (None, "none"),
    ],
)
def test_the_room_above_the_scale(safe, expected):
    culprits = (Culprit("net/a", "output", "forward", "nan", "b", "c"),) * 2
    found = Diagnosis(culprits, (), 8.0, safe, 0.0, None, "Verdict.", 1.0)
    lines = str(found).splitlines()
    assert lines[2] == f"largest safe scale  {expected}"
    assert "2 culprits:" in lines
