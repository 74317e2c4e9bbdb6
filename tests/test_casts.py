"""Casts of nested structures keep what is no float tensor."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.gradients import RUNS

from keras_mp import casts


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


def test_cast_floats_touches_float_tensors_only(run):
    integers, flags = tf.constant([1, 2]), tf.constant([True, False])

    def cast(low, high):
        return casts.cast_floats(
            {"a": [low, integers], "b": (flags, None), "c": {"d": high}}, "float16"
        )

    result = run(cast)(tf.constant([1.5], "bfloat16"), tf.constant([[2.5]]))
    assert result["a"][0].dtype == result["c"]["d"].dtype == tf.float16
    assert result["a"][1].dtype == tf.int32
    assert result["b"][0].dtype == tf.bool
    assert result["b"][1] is None
    assert isinstance(result["b"], tuple)
    np.testing.assert_array_equal(result["a"][0], [1.5])
    np.testing.assert_array_equal(result["c"]["d"], [[2.5]])


def test_cast_floats_leaves_alone_what_is_no_tensor():
    array = np.ones(2, "float32")
    structure = [array, 1.5, 3, True, "text", None]
    assert casts.cast_floats(structure, "float16") == structure
    assert casts.cast_floats(None, "float16") is None
    assert casts.cast_floats([], "float16") == []
    tensor = tf.constant(3)
    assert casts.cast_floats(tensor, "float16") is tensor


def test_cast_floats_casts_symbolic_tensors():
    structure = {"x": keras.Input((2,)), "ids": keras.Input((2,), dtype="int32")}
    result = casts.cast_floats(structure, "bfloat16")
    assert result["x"].dtype == "bfloat16"
    assert result["x"].shape == (None, 2)
    assert result["ids"] is structure["ids"]
