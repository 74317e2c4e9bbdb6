"""Run the cells of a notebook, whose path is given, as IPython does in a kernel."""

import sys

import nbformat
from IPython.core.interactiveshell import InteractiveShell


class Shell(InteractiveShell):
    """IPython without a terminal, which shows pictures as a notebook does."""

    def enable_gui(self, gui=None):
        """Do nothing: pictures inline need no event loop."""


if __name__ == "__main__":
    shell = Shell.instance()
    shell.enable_matplotlib("inline")
    for cell in nbformat.read(sys.argv[1], as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()
