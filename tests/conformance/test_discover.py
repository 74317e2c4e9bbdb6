"""What Keras makes public has a case or a reason, in this release and the next."""

import inspect
import types

import keras
import pytest

from keras_mp.conformance import discover
from keras_mp.conformance.cases import Case
from keras_mp.conformance.every import all_cases


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


def test_every_case_runs_at_ordinary_magnitudes_or_says_what_else():
    for case in all_cases():
        assert case.scenarios, case.title
        assert not inspect.isclass(case.build)
