"""What the whole suite leaves to CI has only values that it sees in other cases."""

import numpy as np
import pytest
from support import each_choice


class Case:
    """A case of a test, as pytest has collected it."""

    def __init__(self, test, marks=(), **params):
        self.nodeid = f"{test}[{params}]" if params else test
        self.marks = {mark.name: mark for mark in marks}
        if params:
            self.callspec = type("CallSpec", (), {"params": params})

    def get_closest_marker(self, name):
        return self.marks.get(name)

    def add_marker(self, decorator):
        self.marks[decorator.name] = decorator.mark


def left_to_ci(cases):
    each_choice.mark_the_others(cases)
    return [index for index, case in enumerate(cases) if "combinations" in case.marks]


def test_each_value_of_each_parameter_stays():
    cases = [Case("t", a=a, b=b) for a in "xyz" for b in (1, 2)]
    kept = {*range(6)} - {*left_to_ci(cases)}
    assert len(kept) == 3
    for name in "ab":
        values = {case.callspec.params[name] for case in cases}
        assert {cases[index].callspec.params[name] for index in kept} == values


def test_equal_values_of_other_types_are_others():
    assert left_to_ci([Case("t", a=each) for each in (1, 1.0, True, "1", None)]) == []


def test_objects_are_told_apart_by_identity():
    shared = [1]
    cases = [Case("t", a=shared), Case("t", a=[1]), Case("t", a=shared)]
    assert left_to_ci(cases) == [2]


def test_tests_without_parameters_stay():
    assert left_to_ci([Case("t"), Case("u"), Case("v", a=1), Case("w", a=1)]) == []


def test_of_a_marked_test_every_nth_case_stays():
    cases = [Case("t", [pytest.mark.every(3).mark], a=index) for index in range(7)]
    assert left_to_ci(cases) == [1, 2, 4, 5]


def test_of_the_same_on_workers_replicas_of_one_process_stay():
    others, places = (1, np.ones(2)), ("mirrored", "multi-worker")
    cases = [Case("t", on=place, a=other) for other in others for place in places]
    assert left_to_ci(cases) == [1, 3]
    assert left_to_ci([Case("t", on="multi-worker", a=other) for other in others]) == []


def test_a_slow_case_stands_for_none():
    slow = pytest.mark.slow.mark
    assert left_to_ci([Case("t", [slow], a=1), Case("t", a=1), Case("t", a=1)]) == [2]
