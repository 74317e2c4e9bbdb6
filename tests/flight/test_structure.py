"""Batches of any structure and dtype are kept bit for bit, and never pickled."""

import collections
import json

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from keras_mp.flight import structure

STRUCTURES = {
    "array": np.arange(6.0).reshape(2, 3),
    "tuple": (np.ones(2), None, np.zeros((2, 1), "int64")),
    "list": [np.ones(2), [np.ones(1, bool)], []],
    "dict": {"b": np.ones(2), "a": {"c": (np.zeros(1, "uint8"),)}, 3: np.ones(1)},
    "nothing": None,
    "numbers": [1, 2.5, True],
    "no rows": np.zeros((0, 4), "float32"),
    "bfloat16": np.array([1.5, np.inf], ml_dtypes.bfloat16),
    "float16": np.array([1.5, np.nan], "float16"),
    "tensor": tf.constant([[1.0, 2.0]], tf.bfloat16),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_round_trip(name):
    given = STRUCTURES[name]
    form, arrays = structure.packed(given)
    assert not any(array.dtype.hasobject for array in arrays)
    found = structure.unpacked(json.loads(json.dumps(form)), arrays)
    keras.tree.assert_same_structure(found, given)
    pairs = zip(keras.tree.flatten(found), keras.tree.flatten(given), strict=True)
    for one, other in pairs:
        if other is None:
            assert one is None
            continue
        other = np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def test_strings():
    given = tf.constant([[b"\x00png\x00\x00", b""], ["gr\u00fcn".encode(), b"."]])
    form, (array,) = structure.packed(given)
    assert not array.dtype.hasobject
    found = structure.unpacked(form, [array])
    assert found.tolist() == given.numpy().tolist()


def test_a_named_tuple_is_a_tuple():
    pair = collections.namedtuple("Pair", "a b")(np.ones(1), np.zeros(1))
    form, arrays = structure.packed(pair)
    assert isinstance(structure.unpacked(form, arrays), tuple)


@pytest.mark.parametrize(
    "given, named",
    [
        ({"x": tf.ragged.constant([[1], [2, 3]])}, "RaggedTensor"),
        ([object()], "object"),
        ({(1, 2): np.ones(1)}, "key of type tuple"),
    ],
)
def test_what_cannot_be_kept(given, named):
    with pytest.raises(TypeError, match=named):
        structure.packed(given)
