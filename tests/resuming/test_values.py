"""All that training changes, by keys that another process has too."""

import keras
import numpy as np
import pytest
from support.resumed import arrays, made, trained

import keras_mp
from keras_mp.resuming import values


@pytest.mark.long
def test_each_variable_once():
    model = made()
    trained(model, arrays(), epochs=1)
    found = values.variables_of(model)
    expected = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    assert {id(each) for each in found.values()} == {id(each) for each in expected}
    assert len(found) == len({id(each) for each in expected})


def test_several_optimizers():
    model = made()
    model.second = keras.optimizers.SGD(0.1, momentum=0.9)
    model.second.build(model.trainable_variables)
    found = {key.split("/")[0] for key in values.variables_of(model)}
    assert {"optimizer", "second"} <= found


@pytest.mark.long
def test_left_out_of_files():
    """On one device only the states of random generators."""
    model = made()
    trained(model, arrays(), epochs=1)
    assert list(values.left_out_of_files(model)) == ["seeds/0"]


def test_what_has_no_variable_is_passed_over():
    model = made()
    bias = [np.ones(4, "float32")]
    values.assign(model, {"other/0": [np.zeros(2, "uint32")], "model/1": bias})
    np.testing.assert_array_equal(model.get_weights()[1], bias[0])


@pytest.mark.parametrize(
    "value, match",
    [
        ([np.zeros(3, "float32")], "of shape \\(4, 4\\) and dtype float32 got a value"),
        ([np.zeros((4, 4), "float16")], "dtype float16"),
        ([np.zeros((4, 4), "float32")] * 2, "each of 2 replicas, and here it has 1"),
    ],
)
def test_what_does_not_fit_changes_nothing(value, match):
    model = made()
    before = model.get_weights()
    good = [np.ones(4, "float32")]
    with pytest.raises(ValueError, match=match):
        values.assign(model, {"model/1": good, "model/0": value})
    for found, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, old)


def test_another_model_is_told_apart():
    state = values.read(values.variables_of(made()))
    values.check_same_model(made(), state)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    keras_mp.compile(other, "sgd", "mse")
    with pytest.raises(
        ValueError, match="it has .* and the values are of .* of 'model'"
    ):
        values.check_same_model(other, state)
