"""A diagnosis changes nothing: training goes on bit for bit."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp

pytestmark = pytest.mark.long

X = np.random.default_rng(0).normal(size=(16, 6, 8)).astype("float32")
Y = np.random.default_rng(1).integers(3, size=16)


def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8), batch_size=8)
    hidden = layers.Dropout(0.5)(layers.Dense(8)(inputs))
    hidden = layers.GaussianNoise(0.1)(layers.BatchNormalization()(hidden))
    hidden = layers.LSTM(8, stateful=True, dropout=0.2)(hidden)
    logits = layers.Dense(3, activity_regularizer="l2")(hidden)
    made = keras.Model(inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]
    keras_mp.compile(made, keras.optimizers.Adam(), loss, metrics=metrics)
    return made


def trained(diagnoses):
    made = model()
    histories = []
    for _ in range(3):
        histories.append(made.fit(X, Y, batch_size=8, verbose=0, shuffle=False).history)
        if diagnoses:
            keras_mp.diagnose(made, X[:8], Y[:8])
    state = [*made.variables, *made.optimizer.variables, *made.metrics_variables]
    state += next(layer.states for layer in made.layers if hasattr(layer, "states"))
    return histories, [np.asarray(each) for each in state]


@pytest.mark.every(3)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_training_goes_on_bit_for_bit(policy):
    with keras_mp.policy_scope(policy):
        one, other = trained(False), trained(True)
    assert one[0] == other[0]
    for value, same in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(value, same)


def test_before_the_first_step_too():
    with keras_mp.policy_scope("mixed_float16"):
        made, twin = model(), model()
    keras_mp.diagnose(made, X[:8], Y[:8])
    for each in (made, twin):
        each.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    for value, same in zip(made.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(value, same)
