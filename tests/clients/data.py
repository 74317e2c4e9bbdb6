"""Data that clients of a kind share."""

import numpy as np

VOCABULARY, LENGTH, ROWS, CLASSES = 100, 8, 4, 3


def rng():
    return np.random.default_rng(0)


def ids(length=LENGTH):
    return rng().integers(1, VOCABULARY, (ROWS, length)).astype("int32")


def mask(length=LENGTH):
    """Return a mask that hides the last two tokens of the first row."""
    mask = np.ones((ROWS, length), "int32")
    mask[0, -2:] = 0
    return mask


def labels():
    return np.arange(ROWS) % CLASSES


def tokens():
    return {"token_ids": ids(), "padding_mask": mask()}


def next_tokens():
    """Return what a causal language model is fed: tokens, the next ones, weights."""
    found = tokens()
    return found, np.roll(found["token_ids"], -1, axis=1), mask().astype("float32")


def images(size=32, channels=3):
    return rng().uniform(-1, 1, (ROWS, size, size, channels)).astype("float32")
