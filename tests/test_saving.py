"""Keras finds keras_mp's classes in saved files."""

import keras

import keras_mp


def test_public_classes_are_registered_for_saving():
    places = [keras_mp, keras_mp.layers, keras_mp.scaling]
    classes = {
        value
        for module in places
        for value in (getattr(module, name) for name in module.__all__)
        if isinstance(value, type) and hasattr(value, "get_config")
    }
    bases = {keras_mp.scaling.LossScale, keras_mp.layers.Island}
    for cls in classes - bases:
        name = keras.saving.get_registered_name(cls)
        assert name == f"keras_mp>{cls.__name__}"
