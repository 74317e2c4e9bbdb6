"""Every notebook runs from top to bottom, and is committed with its outputs."""

import contextlib
import pathlib

import nbclient
import nbformat
import pytest
from support.processes import Forked, deadline

pytestmark = pytest.mark.long

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# The first that a user opens runs in a kernel, as there; all others in a process that
# has TensorFlow imported.
IN_A_KERNEL, *OTHERS = NOTEBOOKS


# ipykernel's own choices: how it talks to the client, and on which event loop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_notebook_runs_in_a_kernel():
    notebook = nbformat.read(IN_A_KERNEL, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute()


@pytest.mark.every(3)
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    with contextlib.closing(Forked("support.notebook", str(path))) as process:
        with deadline(300, process):
            printed = process.stdout.read()
            process.wait()
        assert process.returncode == 0, printed[-4000:] + process.errors()[-4000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    shown = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)
