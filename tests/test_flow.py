"""What readers get, and what tensors that were rounded remember."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mp import flow

#: Of which float16 rounds the second to 2048 and has no third.
RAW = np.array([[1.0, 2049.0, 70001.0]], "float32")


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def test_the_reader_is_that_of_the_innermost_block():
    assert flow.reader() is None
    with flow.read_by(flow.STEP):
        with pytest.raises(KeyError), flow.read_by(flow.CODE):
            assert flow.reader() == flow.CODE
            raise KeyError
        assert flow.reader() == flow.STEP
    assert flow.reader() is None


@pytest.mark.parametrize(
    ("reader", "dtype"),
    [
        (None, "float16"),
        (flow.CODE, "float16"),
        (flow.STEP, "float16"),  # a single layer; models are asked by `hand_out`
        (flow.GRAPH, "float32"),
        (flow.ISLAND, "float32"),
    ],
)
def test_what_readers_get_of_a_layer(reader, dtype):
    with flow.read_by(reader):
        result = flow.hand_on(keras.ops.convert_to_tensor(RAW), "float16")
    assert dtype_of(result) == dtype
    np.testing.assert_array_equal(flow.unrounded(result), RAW)


@pytest.mark.parametrize("reader", [None, flow.STEP])
def test_what_is_wanted_in_float32_is_for_code_only_in_16_bits(reader):
    with flow.read_by(reader):
        result = flow.hand_on(keras.ops.convert_to_tensor(RAW), "float16", wanted=True)
        assert dtype_of(flow.hand_out(result, of_model=True)) == "float32"
    with flow.read_by(flow.CODE):
        assert dtype_of(flow.hand_out(result, of_model=True)) == "float16"


def test_a_graph_hands_out_what_keras_would_give():
    with flow.read_by(flow.GRAPH):
        inner = flow.hand_on(keras.ops.convert_to_tensor(RAW), "bfloat16")
        assert dtype_of(inner) == "float32"
        assert flow.dtype_in_keras(inner) == "bfloat16"
    with flow.read_by(flow.CODE):
        assert dtype_of(flow.hand_out(inner, of_model=True)) == "bfloat16"
    for reader in (flow.STEP, None):
        with flow.read_by(reader):
            assert dtype_of(flow.hand_out(inner, of_model=True)) == "float32"


def test_structures_keep_what_is_no_float():
    given = {"a": keras.ops.convert_to_tensor(RAW), "b": [keras.ops.ones(2, "int32")]}
    result = flow.rounded({**given, "c": None, "d": True}, "float16")
    assert dtype_of(result["a"]) == "float16"
    assert result["b"][0] is given["b"][0]
    assert result["c"] is None and result["d"] is True
    assert dtype_of(flow.widened(result)["a"]) == "float32"


def test_a_remembered_function_is_called_when_it_is_asked_for():
    calls = []

    def exact():
        calls.append(1)
        return keras.ops.convert_to_tensor(RAW)

    low = flow.remember(keras.ops.cast(RAW, "float16"), exact)
    assert not calls
    np.testing.assert_array_equal(flow.widened(low), RAW)
    assert calls == [1]


def test_only_a_head_takes_what_a_product_remembers():
    low = keras.ops.cast(RAW, "float16")
    flow.remember_product(low, lambda: keras.ops.convert_to_tensor(RAW))
    assert np.isinf(flow.widened(low)).any()
    np.testing.assert_array_equal(flow.widened(low, products=True), RAW)


MOVES = {
    "as it is": lambda x: x,
    "slice": lambda x: x[:, 1:],
    "last": lambda x: x[..., -1],
    "reshape": lambda x: tf.reshape(x, (-1,)),
    "transpose": lambda x: tf.transpose(x),
    "expand": lambda x: tf.expand_dims(x, -1),
    "squeeze": lambda x: tf.squeeze(x, 0),
    "gather": lambda x: tf.gather(x, [2, 0], axis=1),
    "split": lambda x: tf.split(x, 3, axis=1)[1],
    "split sizes": lambda x: tf.split(x, [1, 2], axis=1)[1],
    "unstack": lambda x: tf.unstack(x, axis=1)[2],
    "concat": lambda x: tf.concat([x, tf.ones((1, 2), x.dtype)], 1),
    "stack": lambda x: tf.stack([x, x]),
    "two moves": lambda x: tf.reshape(x[:, 1:], (2, 1)),
    "cast up": lambda x: tf.cast(x, "float32"),
}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MOVES)
def test_in_a_graph_what_moved_is_found_again(name, low):
    move = MOVES[name]

    @tf.function
    def both(x):
        return flow.unrounded(move(tf.cast(x, low))), move(x)

    found, expected = both(tf.constant(RAW))
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "change", [lambda x: x + 1, lambda x: tf.exp(x), lambda x: tf.cast(x, "int32")]
)
def test_what_was_computed_is_not_undone(change):
    @tf.function
    def same(x):
        changed = change(tf.cast(x, "float16"))
        return flow.unrounded(changed) is changed

    assert same(tf.constant(RAW))


def test_gradients_pass_through_what_was_rounded():
    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(flow.unrounded(tf.cast(x, "float16")[:, 1:]) ** 2)
        return tape.gradient(y, x)

    np.testing.assert_array_equal(gradient(tf.constant(RAW)), [[0, 4098, 140002]])


def test_masks_stay():
    x = keras.ops.convert_to_tensor(RAW)
    x._keras_mask = mask = keras.ops.ones((1, 3), "bool")
    low = flow.rounded(x, "float16")
    assert low._keras_mask is mask
    assert flow.unrounded(low)._keras_mask is mask
