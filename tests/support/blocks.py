"""Run blocks of Python, given as JSON, each as in a new program.

Prints a JSON list of what each printed and, if it failed, its traceback.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import traceback

import keras


def run(code):
    """Run ``code``; return what it printed and its traceback, or None."""
    keras.backend.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            exec(compile(code, "<block>", "exec"), {"__name__": "__main__"})
            failure = None
        except Exception:
            failure = traceback.format_exc()
        os.chdir("/")
    return printed.getvalue(), failure


if __name__ == "__main__":
    results = list(map(run, json.loads(sys.argv[1])))
    print(json.dumps(results))
