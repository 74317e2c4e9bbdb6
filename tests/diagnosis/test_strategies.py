"""A model that was created under a strategy is diagnosed as on one device."""

import functools
import json
import sys

import keras
import numpy as np
import pytest
from support.processes import mirrored, run_alone

import keras_mp

pytestmark = pytest.mark.long

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X[:, :1]


@functools.cache
def results():
    return run_alone(__file__, "mirrored")


def test_the_culprit_is_that_of_one_device():
    assert results()["culprits"] == [["net/second", "output", "forward", "overflow"]]


def test_training_goes_on_as_if_it_had_not_been():
    assert results()["diagnosed"] == results()["undisturbed"]


def built():
    keras.utils.set_random_seed(0)
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(4, name="first"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(4, name="second"),
                keras.layers.Dense(1, name="head"),
            ],
            name="net",
        )
    keras_mp.compile(model, "adam", "mse")
    return model


def weights_after(strategy, diagnoses):
    with strategy.scope():
        model = built()
    for _ in range(2):
        model.fit(X, Y, verbose=0, shuffle=False)
        if diagnoses:
            found = keras_mp.diagnose(model, X, Y, scale=1.0).culprits
            assert found == (), found
    return [weight.tolist() for weight in model.get_weights()]


def main():
    strategy = mirrored(2)
    with strategy.scope():
        model = built()
        kernel = model.get_layer("second").kernel
        kernel.assign(kernel * 1e6)
    found = {
        "culprits": [
            culprit[:4] for culprit in keras_mp.diagnose(model, X, Y).culprits
        ],
        "undisturbed": weights_after(strategy, False),
        "diagnosed": weights_after(strategy, True),
    }
    print(json.dumps(found))


if __name__ == "__main__" and "mirrored" in sys.argv:
    main()
