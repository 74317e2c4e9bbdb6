"""Programs with operations of their own: what Keras trains, keras_mp trains as well.

A program is a function that returns a `Trial`: a small model, its data, and how it is
compiled. Each is run in four ways: in float32; in 16 bits with Keras alone; and in
16 bits with keras_mp, by ``set_policy`` before the model is built and by
``compile(..., policy=...)`` after it. `test_programs` compares what they report.

- ``program``: what a program is, and the list of all.
- ``running``: trains one program in one way.
- ``agreement``: compares two runs.
- All other files hold programs, by what is special about them. Those marked ``fails``,
  most of them in ``mixed`` and ``mixed_state``, Keras trains in float32 only.
"""

from . import (  # noqa: F401
    attention,
    blocks,
    generative,
    inputs,
    losses,
    mixed,
    mixed_state,
    nested,
    recurrent,
    state,
    steps,
    structures,
    vision,
)
