"""A step that overflowed, as `FlightRecorder` writes it."""

import numpy as np

from keras_mp import flight
from keras_mp.diagnosis import Culprit
from keras_mp.recording import Batch


def example(**changes):
    """Return a `Flight` with changes of its fields."""
    made = flight.Flight(
        model="net",
        time="2026-11-28 17:00:00",
        step=1204,
        replica=1,
        cause="the output of block_3/attention overflowed (forward)",
        culprits=(Culprit("net/a", "output", "forward", "overflow", "inf", "fix"),),
        variables=("a/kernel",),
        scales=np.array([8.0, 16.0], "float32"),
        weights="0123",
        seeds=[np.array([3, 4], "uint32")],
        batch=Batch({"x": np.ones((2, 3))}, (np.zeros(2),), None),
        rows=(4, 6),
    )
    return made._replace(**changes)
