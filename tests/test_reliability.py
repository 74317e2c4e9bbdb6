"""The page shows the record, and in it nothing is lost."""

from reliability import render
from reliability.__main__ import Counts


def test_the_page_shows_the_record():
    assert render.PAGE.read_text() == render.page(render.read())


def test_nothing_is_lost():
    faults = render.read()["faults"]
    assert len(faults) >= 6
    for kind, (injected, survived) in faults.items():
        assert injected == survived > 0, kind


def test_counts_are_added_up():
    class Report:
        when = "call"
        user_properties = [("faults", ["kind", 3, 2]), ("other", 1)]

    counts = Counts()
    for _ in range(2):
        counts.pytest_runtest_logreport(Report)
    assert counts.faults == {"kind": [6, 4]}
