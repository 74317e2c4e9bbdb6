"""The support matrix: which feature works under which strategy, in which way.

Every cell of it is a small training run in a process with that strategy, checked
against Keras's bare optimizer on one device; each is run with our optimizer and with
Keras's own class. From the repository's root,

    python -m tests.support --write

runs all of them and writes ``docs/support.json`` and ``docs/support.md``.
``tests/test_support.py`` holds each cell of ours to what is written there.

- ``cells``: the axes of the matrix, and which cells it has.
- ``scenarios``: the features, one function each, as run in a cell.
- ``trial``: what a scenario sees of its cell: build a model, train it, compare it.
- ``processes``: strategies, and the processes that have them.
- ``worker``: runs cells in one process; ``runner``: runs workers and judges them.
- ``render``: the tables.
"""
