"""Mixed against pure precision: the table."""

from benchmarks import casts, steps, timing


def test_table_shows_how_far_mixed_is_behind_pure():
    seconds = dict(zip(casts.COLUMNS, ([0.4], [0.3], [0.25], [0.2]), strict=True))
    timed = timing.summary([seconds], casts.PAIRS)
    results = [{"model": "wide", "optimizer": "SGD"} | timed]
    assert casts.table(results).splitlines()[2] == (
        "| 4 Dense of width 2048, SGD | 400.0 | 300.0 | 250.0 | 200.0 | 1.50 | 1.25 |"
    )


def test_columns_name_known_candidates():
    assert {candidate for _, candidate in casts.COLUMNS.values()} <= set(steps.COMPILE)
