"""A recorder runs a batch once in each precision, with the same random numbers."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp.recording import Batch, Recorder, record

ROWS = 16


@pytest.fixture
def recorder():
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dropout(0.5),
                keras.layers.GaussianNoise(1.0),
                keras.layers.Dense(1),
            ]
        )
    keras_mp.compile(model, "sgd", "mse")
    x = np.ones((ROWS, 8), "float32")
    return Recorder(model, Batch(keras.ops.array(x), keras.ops.array(x[:, :1])))


def outputs(run):
    return [np.asarray(call.outputs[0], "float32") for call in run.calls[1:]]


def test_other_policies_have_the_same_random_numbers(recorder):
    low = outputs(recorder.run())
    keras_mp.convert(recorder.model, "float32")
    wide = outputs(recorder.under_other_policies().run())
    np.testing.assert_array_equal(wide[0], low[0])  # 0 or 2
    # The noise that float16 drew, and one rounding of the sum.
    np.testing.assert_allclose(wide[1], low[1], rtol=2**-10)
    assert np.std(wide[1] - wide[0]) > 0.5


@pytest.mark.internals
def test_the_pass_in_float32_is_made_once(recorder, monkeypatch):
    made = []

    class Counted(record.Pass):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self.calls[1].dtype)

    monkeypatch.setattr(record, "Pass", Counted)
    first = recorder.record(1.0, against_float32=True)
    assert made == ["float16", "float32"]
    other = recorder.under_other_policies()
    assert other.record_in_float32() is recorder.record_in_float32()
    assert other.record(1.0, against_float32=True) == first
    assert made == ["float16", "float32", "float16"]
