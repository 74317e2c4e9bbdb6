"""What Keras alone makes of files of keras_mp's: a program that never imports it.

Takes a folder and prints, as JSON, what became of each file in it.
"""

import json
import pathlib
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf


def new_model():
    """Return the model of which the files hold the weights."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, name="body"),
            keras.layers.Dense(1, kernel_initializer="zeros", name="head"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def numbers(model):
    """Return the weights and the optimizer's variables, as lists of lists."""
    optimizer = getattr(model, "optimizer", None)
    return [
        [np.asarray(each, "float64").ravel().tolist() for each in variables]
        for variables in (model.variables, optimizer.variables if optimizer else [])
    ]


def outcome(load):
    """Return what ``load()`` loaded, or its error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = load()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
    said = [str(each.message) for each in caught]
    return {"numbers": numbers(model), "warnings": said}


def read_weights(path):
    model = new_model()
    model.load_weights(path)
    return model


def read_checkpoint(path):
    model = new_model()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    checkpoint.read(str(path)).assert_existing_objects_matched().expect_partial()
    return model


def main(folder):
    keras.config.set_dtype_policy("mixed_float16")
    found = {"weights": outcome(lambda: read_weights(folder / "scaled.weights.h5"))}
    found["checkpoint"] = outcome(lambda: read_checkpoint(folder / "scaled.ckpt"))
    load = keras.saving.load_model
    for path in folder.glob("*.keras"):
        found[path.stem] = outcome(lambda path=path: load(path))
        found[f"{path.stem}, not compiled"] = outcome(
            lambda path=path: load(path, compile=False)
        )
    assert "keras_mp" not in sys.modules
    print(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
