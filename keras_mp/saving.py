"""How Keras finds the classes of keras_mp in saved files."""

from typing import TypeVar

import keras

Class = TypeVar("Class", bound=type)


def register(cls: Class) -> Class:
    """Register a class with Keras, so that it loads without ``custom_objects``.

    Keras's decorator declares no types: what it decorates has none to a type checker.
    """
    return keras.saving.register_keras_serializable("keras_mp")(cls)
