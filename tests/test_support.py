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


def is_short(cell):
    """Return whether CI has time for it: all ways on two replicas, two elsewhere."""
    return cell.strategy == "mirrored-2" or cell.way in ("fit", "loop")


OURS = cells.all_cells(["ours"])


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
