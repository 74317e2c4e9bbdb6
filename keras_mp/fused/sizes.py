"""Which variables are small."""

import math

#: On a CPU starting Adam's kernel takes about as long as updating so many numbers.
SMALL = 2**13


def size_of(variable):
    """Return how many numbers ``variable`` holds."""
    return math.prod(variable.shape)


def is_small(pair):
    """Return whether a pair of a gradient and its variable is of a small one."""
    _, variable = pair
    return "CPU" in variable.device and size_of(variable) <= SMALL
