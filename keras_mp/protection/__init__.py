"""Steps that are skipped change nothing in their model, and its logs tell the truth."""

from keras_mp.protection.step import protect

__all__ = ["protect"]
