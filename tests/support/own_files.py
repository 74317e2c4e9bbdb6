"""A model and data of a user's own, in files as `keras_mp train` takes them."""

import keras
import numpy as np

import keras_mp


def save_model(path, policy="float32", compiled=True, outputs=3):
    last = "softmax" if outputs > 1 else None
    with keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.Dense(outputs, activation=last, dtype="float32"),
            ]
        )
    if compiled:
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        loss = "sparse_categorical_crossentropy"
        keras_mp.compile(model, optimizer, loss, metrics=["accuracy"])
    model.save(path)
    return str(path)


def save_data(path, samples=50, features=4, **arrays):
    x = np.random.default_rng(0).integers(0, 255, (samples, features), dtype="uint8")
    np.savez(path, x=x, y=(x[:, 0] > 127).astype("int64"), **arrays)
    return str(path)
