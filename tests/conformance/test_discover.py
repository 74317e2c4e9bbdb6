"""What Keras makes public has a case or a reason, in this release and the next."""

import collections
import types

import keras
import numpy as np
import pytest

from conformance import discover, measure, run
from conformance.cases import UNROUNDED, Case
from conformance.every import all_cases
from conformance.modes import MODES
from keras_mp import precision_lists


def test_all_of_keras_has_a_case_or_a_reason():
    assert discover.untested(all_cases()) == []


class FromTheFuture(keras.layers.Layer):
    """A layer that a new release of Keras brings."""


@pytest.mark.parametrize("kind", discover.KINDS)
def test_what_a_new_release_brings_is_reported(kind):
    module = types.ModuleType("keras.new")
    module.FromTheFuture = module.AnAlias = FromTheFuture
    module.get = keras.layers.Layer
    found = discover.untested(all_cases(), {kind: module})
    assert found == ["keras.new.FromTheFuture"]


def test_a_function_in_two_modules_needs_one_case():
    first, second = types.ModuleType("first"), types.ModuleType("second")
    first.shared = second.shared = keras.losses.hinge
    found = discover.untested([], {"losses": first, "metrics": second})
    assert found == ["first.shared"]


def test_what_this_release_lacks_is_left_out():
    case = Case("layers", "FromTheFuture", build=None, scenarios={})
    assert discover.present([case]) == []


def test_every_exclusion_has_a_reason_and_no_case():
    titles = {(case.kind, case.name) for case in all_cases()}
    assert all(reason for reason in discover.EXCLUDED.values())
    assert not titles & set(discover.EXCLUDED)


def test_cases_differ_by_title():
    titles = [(case.kind, case.title) for case in all_cases()]
    assert len(titles) == len(set(titles))


# Scenarios of what takes ids, counts or raw data, or only reduces.
INSTEAD = {"ids", "integers", "unscaled", "long"}


def test_every_name_is_called_at_ordinary_magnitudes_unless_it_takes_none():
    scenarios = collections.defaultdict(set)
    for case in all_cases():
        scenarios[case.kind, case.name] |= set(case.scenarios)
    for name, found in scenarios.items():
        assert found & ({"ordinary"} | INSTEAD), name


PREPARING = {
    name: cls
    for name, cls in discover.preparing().items()
    if ("layers", name) not in discover.EXCLUDED
}
READING = [
    (case, scenario)
    for case in all_cases()
    if case.kind == "layers" and case.name in PREPARING
    for scenario in case.scenarios
    if scenario in (*UNROUNDED, "integers")
]


class Brightens(keras.layers.RandomBrightness):
    """A layer that prepares images, as a new release of Keras brings one."""


def test_a_new_layer_that_prepares_data_is_found():
    module = types.ModuleType("keras.new")
    module.Brightens, module.Dense = Brightens, keras.layers.Dense
    assert discover.preparing(module) == {"Brightens": Brightens}


def test_every_layer_that_prepares_data_is_on_the_list_and_gets_some_that_is_raw():
    # A pipeline computes nothing: the layers in it do.
    unlisted = {
        name for name, cls in PREPARING.items() if cls not in precision_lists.DATA
    }
    assert unlisted == {"Pipeline"}
    assert {case.name for case, _ in READING} == set(PREPARING)


@pytest.mark.parametrize("policy", measure.POLICIES)
@pytest.mark.parametrize(
    ("case", "scenario"), READING, ids=[f"{c.title}-{name}" for c, name in READING]
)
def test_raw_data_comes_out_as_in_float32(case, scenario, policy):
    dtype = policy.removeprefix("mixed_")
    given = run.arguments(case, scenario, dtype)
    expected = run.reference(case, scenario, given, dtype)
    outcome = run.run(case, given, MODES["keras_mp"], policy, expected.start)
    assert outcome.dtypes == expected.dtypes
    for got, exact in zip(outcome.outputs, expected.outputs, strict=True):
        np.testing.assert_array_equal(got, exact)
