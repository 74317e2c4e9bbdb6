"""What was broken on purpose, and what became of it: ``docs/reliability.md``.

Tests that inject faults note how many, by the fixture ``check_faults``. From the
repository's root,

    python -m tests.reliability --write

runs all of these tests, those that take minutes included, and writes the numbers into
``docs/reliability.json`` and the page. It takes about half an hour.
"""
