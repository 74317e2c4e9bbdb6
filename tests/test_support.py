"""Every cell of the support matrix: ours, and of Keras's own class the known faults.

The cells run in processes of their own, once for all tests that were selected. What
they gave is written in ``docs/support.json`` (see `support` for how), which ours must
still give; and from it comes ``docs/support.md``.
"""

import pytest
from support import cells, render, runner

RECORD = render.read()

# One cell for each of the project's findings on strategies.
KNOWN = {
    "1, one replica's overflow": ("mirrored-2", "fit", "overflow"),
    "2, a worker's overflow": ("multi-worker-2", "loop-eager", "overflow"),
    "2, fit on workers": ("multi-worker-2", "fit", "trains"),
    "5, clipping": ("mirrored-2", "loop", "clipnorm"),
    "10, accumulation": ("mirrored-2", "fit", "accumulation"),
    "10, EMA": ("mirrored-2", "loop", "ema"),
    "11, XLA": ("mirrored-2", "fit", "jit"),
    "12, uneven batches": ("mirrored-2", "fit", "uneven_batches"),
    "12a, several steps": ("mirrored-2", "fit-steps", "trains"),
    "13, dtype of the sum": ("mirrored-2", "fit", "all_reduce_float16"),
    "13, aggregation": ("mirrored-2", "loop", "aggregate_gradients"),
}


# Of ours, what `pytest` has time for without the long tests.
FIRST = [("mirrored-2", "fit", "overflow"), ("mirrored-2", "loop", "trains")]


def parametrized(found, ids=lambda cell: cell.place.replace(" ", "-")):
    return pytest.mark.parametrize("cell", found, ids=ids)


@pytest.fixture(scope="session")
def results(request):
    """Results by cell, of the cells that tests were selected for."""
    parameters = [
        each
        for item in request.session.items
        if hasattr(item, "callspec")
        for each in item.callspec.params.values()
    ]
    # Other tests have cells too, of other tables.
    wanted = dict.fromkeys(each for each in parameters if isinstance(each, cells.Cell))
    return runner.run(wanted)


# Features that are one in how they meet a way of training or a strategy.
KINDS = [
    ("clipnorm", "global_clipnorm", "clipvalue"),
    ("accumulation", "accumulation_adam", "accumulation_overflow"),
    ("all_reduce_float16", "all_reduce_bfloat16"),
    ("resume_inside", "resume_outside"),
]
BOTH = ["fit", "loop"]
# What `fit` does otherwise than a loop, with as many replicas as there are.
OF_FIT = ("overflow", "uneven_batches", "uneven_last", "jit")


def is_short(cell):
    """Return whether CI has time for it.

    It has for each feature in `fit` and a loop on two replicas, and in one of the two
    at least elsewhere; for each kind of feature in all ways on two replicas, and in
    both on one device and on workers.
    """
    others = _taking_turns(cell)
    if cell.strategy == "mirrored-2" and cell.way not in BOTH:
        ways = [way for way in cells.WAYS if way not in BOTH]
        return others[ways.index(cell.way) % len(others)] == cell.feature
    if cell.strategy == "mirrored-2" or len(others) == 1:
        return cell.way in BOTH
    return BOTH[others.index(cell.feature) % 2] == cell.way


def _taking_turns(cell):
    """Return the features that share with that of ``cell`` what CI has time for."""
    if cell.feature in OF_FIT or cell.feature == "aggregate_gradients":
        return [cell.feature]
    if cell.strategy in ("mirrored-1", "mirrored-4"):
        return [name for name in cells.FEATURES if name not in OF_FIT]
    return next((kind for kind in KINDS if cell.feature in kind), [cell.feature])


OURS = cells.all_cells(["ours"])


@parametrized([cells.Cell("ours", *place) for place in FIRST])
def test_first_of_ours(cell, results):
    check(cell, results[cell])


@pytest.mark.long
@pytest.mark.every(8)
@parametrized([cell for cell in OURS if is_short(cell)])
def test_ours(cell, results):
    check(cell, results[cell])


@pytest.mark.slow
@parametrized([cell for cell in OURS if not is_short(cell)])
def test_the_rest_of_ours(cell, results):
    check(cell, results[cell])


def check(cell, result):
    assert result["outcome"] in ("passed", "refused"), result["traceback"]
    assert result["outcome"] == RECORD["cells"][cell.place]["ours"]


@pytest.mark.long
@pytest.mark.every(6)
@parametrized(
    [cells.Cell("keras", *place) for place in KNOWN.values()], ids=list(KNOWN)
)
def test_a_known_fault_of_keras_own_class_is_still_there(cell, results):
    assert results[cell]["outcome"] != "passed", f"Run `{render.COMMAND}`"


@pytest.mark.slow
@pytest.mark.skipif(
    render.versions() != RECORD["versions"], reason="the record is of other versions"
)
@parametrized(cells.all_cells(["keras"]))
def test_keras_own_class(cell, results):
    """Whether it passes; how it fails may differ: a peer crashes or waits for ever."""
    recorded = RECORD["cells"][cell.place]["keras"]
    assert (results[cell]["outcome"] == "passed") == (recorded == "passed")


def test_ci_has_time_for_every_pair_of_axes():
    """Way and kind of feature on two replicas; each of the two with a strategy."""
    short = {(cell.strategy, cell.way, cell.feature) for cell in OURS if is_short(cell)}
    kind_of = {name: kind for kind in KINDS for name in kind}
    for cell in OURS:
        kind = kind_of.get(cell.feature, [cell.feature])
        assert any((cell.strategy, way, cell.feature) in short for way in BOTH)
        assert any(("mirrored-2", cell.way, name) in short for name in kind)
    for strategy in cells.STRATEGIES:
        assert {way for place, way, _ in short if place == strategy} >= set(BOTH)


def test_the_record_has_every_place():
    assert list(RECORD["cells"]) == [cell.place for cell in cells.all_cells(["ours"])]


def test_the_tables_show_the_record():
    assert render.FULL.read_text() == render.full(RECORD)


@pytest.mark.parametrize("deaths, outcome", [(1, "passed"), (2, "crashed")])
def test_a_cell_whose_process_died_of_a_bad_address_has_a_second_try(
    deaths, outcome, monkeypatch
):
    died = {"outcome": "crashed", "reason": "a process ended with status -11"}
    results = iter([died] * deaths + [{"outcome": "passed"}])

    class Group:
        def __init__(self, wanted, truth):
            self.cells = wanted

        def results(self):
            yield self.cells[0], next(results)

    monkeypatch.setattr(runner, "_Group", Group)
    (cell, *_) = OURS
    found = runner._run_group([cell], {}, lambda cell, result: None)
    assert found[cell]["outcome"] == outcome
