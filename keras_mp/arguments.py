"""What public calls have in common of checking what they were given."""

from typing import Any

import keras


def check_model(called: str, model: Any, advice: str = "") -> None:
    """Check that ``model``, which ``called`` was given, is a Keras model.

    Args:
        called: What was called, for the message: ``"keras_mp.lint(model)"``.
        model: What was given.
        advice: A sentence of what to do instead, or nothing.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"{called} needs a Keras model. Got {model!r} of type "
            f"{type(model).__name__}. {advice}".rstrip()
        )
