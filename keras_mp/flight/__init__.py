"""A file with all that repeats a step whose gradients were not finite."""

from keras_mp.flight.file import Flight, read, write
from keras_mp.flight.replay import replay, replayed, weights_digest
from keras_mp.flight.rows import fitting

__all__ = [
    "Flight",
    "fitting",
    "read",
    "replay",
    "replayed",
    "weights_digest",
    "write",
]
