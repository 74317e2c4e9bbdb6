"""Tables: what is aligned, and how an entry without a value is shown."""

import pytest

from keras_mp import tables

ROWS = [["a", "12345", "x"], ["longer", "6", None]]


def test_numbers_are_aligned_to_the_right_of_their_columns():
    assert tables.aligned(ROWS) == "a       12345  x\nlonger      6  -"


def test_words_are_aligned_to_the_left_and_no_line_ends_in_spaces():
    rows = [["a", "word", ""], ["longer", "w", "end"]]
    assert tables.aligned(rows, numbers=False) == "a       word\nlonger  w     end"


def test_an_entry_without_a_value_takes_the_place_of_a_dash():
    assert tables.aligned([["a", None], ["b", None]]) == "a  -\nb  -"
    assert tables.line(["a", None], [3, 4]) == "a       -"


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        tables.aligned([["a"], ["b", "c"]])


def test_rows_may_come_from_an_iterator():
    assert tables.aligned(iter(ROWS)) == tables.aligned(ROWS)
    assert tables.markdown(["h"] * 3, iter(ROWS)) == tables.markdown(["h"] * 3, ROWS)


def test_markdown_has_a_rule_that_aligns():
    head = ["h", "i", "j"]
    assert tables.markdown(head, ROWS).splitlines() == [
        "| h | i | j |",
        "| --- | ---: | ---: |",
        "| a | 12345 | x |",
        "| longer | 6 | – |",
    ]
    rule = tables.markdown(head, ROWS, numbers=False).splitlines()[1]
    assert rule == "| --- | --- | --- |"


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((0.5,), "0.50"),
        ((1234.5, ",.0f", " MiB"), "1,234 MiB"),
        ((None, ".2f", "x"), None),
        ((0.0,), "0.00"),
    ],
)
def test_a_number_has_a_form_and_a_unit_or_is_none(arguments, text):
    assert tables.number(*arguments) == text
