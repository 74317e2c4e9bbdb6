"""Every program trains with keras_mp wherever it trains with Keras, and as in float32.

CI runs every sixth program, under one policy and in one way; ``-m slow`` has all of
them, under both policies and in both ways.
"""

import functools
import itertools

import numpy as np
import pytest

from . import agreement
from .program import POLICIES, PROGRAMS
from .running import OURS, run

PLACES = list(itertools.product(POLICIES, OURS))


def _short(index, place):
    """Return whether CI has time for it: all places come up, one after the other."""
    return index % 6 == 0 and place == index // 6 % len(PLACES)


CASES = [
    pytest.param(
        program,
        policy,
        way,
        id=f"{program.name}-{policy}-{way}",
        marks=() if _short(index, place) else pytest.mark.slow,
    )
    for index, program in enumerate(PROGRAMS)
    for place, (policy, way) in enumerate(PLACES)
]

# The policy and the way change nothing about these.
_in_float32 = functools.cache(lambda program: run(program, "float32", "float32"))


@functools.cache
def _with_keras(program, policy):
    """Return the outcome with Keras alone and None, or None and the error's text."""
    try:
        return run(program, "keras", policy), None
    except Exception as error:
        return None, str(error)


@pytest.mark.long
@pytest.mark.every(4)
@pytest.mark.parametrize("program, policy, way", CASES)
def test_trains(program, policy, way):
    truth, (plain, error) = _in_float32(program), _with_keras(program, policy)
    assert (error is not None) == (policy in program.fails), error
    assert error or np.isfinite(plain.logs["loss"]).all()
    ours = run(program, way, policy)
    agreement.check(program, policy, ours, truth, plain)


def test_there_are_enough_programs():
    names = {program.name for program in PROGRAMS}
    assert len(names) == len(PROGRAMS)
    trained = [program for program in PROGRAMS if not program.fails]
    assert len(trained) >= 60
    assert len(PROGRAMS) - len(trained) >= 15
