"""Which cases of a test the whole suite has time for.

Enough of them that each value of each parameter is seen, which is "each choice" of M.
Grindal, J. Offutt and S. F. Andler, "Combination testing strategies: a survey" (2005).
The other cases, which combine the same values, are marked as `combinations`. So are
those on two workers of a test that replicas of one process run as well: they take two
processes and twice the time, and other tests have workers only.
"""

import itertools

import pytest

_LEFT_OUT = ("slow", "clients")
_TWO_PROCESSES = "multi-worker"
_PLAIN = (str, int, float, bool, type(None))


def mark_the_others(items):
    """Mark the cases whose values other cases of the same test have.

    Of a test that is marked ``every(n)``, because its cases take long or are not made
    of values, every n-th case stays.

    Args:
        items: What pytest has collected. Of a test, its cases follow each other.
    """
    for _, cases in itertools.groupby(items, _test):
        cases = [each for each in cases if not _is_left_out(each)]
        chosen = _chosen(_of_one_process(cases))
        for case in cases:
            if case not in chosen:
                case.add_marker(pytest.mark.combinations)


def _of_one_process(cases):
    """Return the cases that need one process, or all if each needs two."""
    one = [each for each in cases if not _needs_two_processes(each)]
    return one or cases


def _needs_two_processes(item):
    values = _params(item).values()
    return any(isinstance(each, str) and each == _TWO_PROCESSES for each in values)


def _chosen(cases):
    every = cases[0].get_closest_marker("every") if cases else None
    if every is not None:
        return cases[:: every.args[0]]
    return [cases[index] for index in _each_choice([_values(each) for each in cases])]


def _each_choice(cases):
    """Return the indices of few ``cases`` that have all values that any of them has.

    The next one is always the first of those that add most.

    Args:
        cases: A set of values for each case.
    """
    missing, chosen = set().union(*cases), []
    while missing:
        best = max(range(len(cases)), key=lambda index: len(cases[index] & missing))
        missing -= cases[best]
        chosen.append(best)
    return chosen or list(range(len(cases)))


def _test(item):
    return item.nodeid.partition("[")[0]


def _is_left_out(item):
    return any(item.get_closest_marker(name) for name in _LEFT_OUT)


def _values(item):
    """Return a set of the parameters of a case with their values."""
    return {
        (name, repr(value) if isinstance(value, _PLAIN) else id(value))
        for name, value in _params(item).items()
    }


def _params(item):
    return item.callspec.params if hasattr(item, "callspec") else {}
