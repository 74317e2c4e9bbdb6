"""The precision lists under their documented name: see `keras_mp.precision_lists`."""

from keras_mp.precision_lists import ALLOW, DENY, FOLLOW, INSIDE

__all__ = ["ALLOW", "DENY", "FOLLOW", "INSIDE"]
