"""KerasTuner: models that its tuners made, trained, saved and loaded again."""

import tempfile

import keras
import keras_tuner

from . import data
from .client import Client

LIMITS = {
    keras_tuner.RandomSearch: {"max_trials": 2},
    keras_tuner.GridSearch: {"max_trials": 2},
    keras_tuner.BayesianOptimization: {"max_trials": 2},
    keras_tuner.Hyperband: {"max_epochs": 2, "hyperband_iterations": 1},
}


def _network():
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(data.CLASSES, activation="softmax"),
        ]
    )


def _of_classes():
    return {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}


def _with(tuner):
    def tune(compiled):
        def make(hyperparameters):
            model = compiled()
            # The second learns nothing, so that the first is the best.
            rate = hyperparameters.Choice("rate", [0.05, 1e-7])
            model.optimizer.learning_rate = rate
            return model

        with tempfile.TemporaryDirectory() as folder:
            search = tuner(
                make, objective="loss", directory=folder, seed=0, **LIMITS[tuner]
            )
            x = data.images()
            search.search(x, data.labels(), epochs=2, verbose=0)
            (best,) = search.get_best_models(1)
        return best

    return Client(
        tuner.__name__,
        "tuner",
        _network,
        lambda: (data.images(), data.labels()),
        _of_classes,
        tune=tune,
    )


CLIENTS = [_with(tuner) for tuner in LIMITS]
