"""BatchNormalization in one kernel does what Keras's own formula does."""

import inspect

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_mp import policy_scope
from keras_mp.guards import names

RANDOM = np.random.default_rng(0)
SHAPES = [(32, 6), (8, 5, 6), (8, 5, 4, 6), (4, 3, 5, 2, 6), (1, 6)]
LOW = ["float16", "bfloat16"]


def pair(policy, **options):
    """Return a guarded layer and Keras's own in float32."""
    with policy_scope(f"mixed_{policy}"):
        return layers.BatchNormalization(**options), layers.BatchNormalization(
            dtype="float32", **options
        )


def data(shape, dtype):
    x = RANDOM.normal(3.0, 2.0, shape).astype("float32")
    return ops.cast(ops.cast(x, dtype), "float32").numpy()


def state(layer, x, dtype, upstream):
    """Return outputs, gradients and variables of one training step."""
    for index, variable in enumerate(layer.trainable_variables):
        variable.assign(np.linspace(0.5 + index, 2.0, x.shape[-1]))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=True)
            loss = ops.sum(ops.cast(outputs, "float32") * upstream)
        trainable = [variable.value for variable in layer.trainable_variables]
        return outputs, tape.gradient(loss, [x, *trainable])

    outputs, gradients = step(ops.cast(x, dtype))
    return outputs, gradients, [variable.numpy() for variable in layer.variables]


def kernels_in(layer, x, **arguments):
    graph = tf.function(lambda x: layer(x, **arguments)).get_concrete_function(x).graph
    return [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_trains_like_keras_in_float32(shape, dtype, options):
    guarded, reference = pair(dtype, **options)
    x, upstream = data(shape, dtype), data(shape, dtype)
    for layer in (guarded, reference):
        layer.build(shape)
    assert kernels_in(guarded, ops.cast(x, dtype), training=True)
    ours = state(guarded, x, dtype, upstream)
    theirs = state(reference, x, "float32", upstream)
    assert ours[0].dtype == dtype and ours[0].shape == shape
    # Outputs and gradients come from sums in float32 in another order, and those like
    # the input are rounded once, the upstream gradient too: two halves of a unit.
    unit = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(
        ops.cast(ours[0], "float32"), theirs[0], rtol=unit, atol=unit
    )
    for mine, other in zip(ours[1], theirs[1], strict=True):
        # Terms as large as the upstream gradient cancel.
        largest = np.abs(other).max() + np.abs(upstream).max()
        np.testing.assert_allclose(
            ops.cast(mine, "float32"), other, rtol=unit, atol=unit * largest
        )
    # float32 sums of up to 480 numbers of size 10.
    for mine, other in zip(ours[2], theirs[2], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


ELSE = {
    "inference": ({}, {"training": False}),
    "frozen": ({"trainable": False}, {"training": True}),
    "channels first": ({"axis": 1}, {"training": True}),
    "masked": ({}, {"training": True, "mask": np.array([[True] * 3, [False] * 3])}),
    "synchronized": ({"synchronized": True}, {"training": True}),
}
if "renorm" in inspect.signature(layers.BatchNormalization).parameters:
    ELSE["renorm"] = ({"renorm": True}, {"training": True})


@pytest.mark.parametrize(("options", "arguments"), ELSE.values(), ids=ELSE)
def test_what_no_kernel_does_is_left_to_keras(options, arguments):
    guarded, reference = pair("float16", **options)
    x = data((2, 3, 4), "float16")
    outputs = []
    for layer in (guarded, reference):
        layer.build(x.shape)
        outputs.append(layer(ops.cast(x, layer.compute_dtype), **arguments))
    assert not kernels_in(guarded, ops.cast(x, "float16"), **arguments)
    assert outputs[0].dtype == "float16"
    np.testing.assert_array_equal(outputs[0], ops.cast(outputs[1], "float16"))
    for mine, other in zip(guarded.variables, reference.variables, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.internals
def test_float32_and_xla_are_left_to_keras():
    guarded, reference = pair("bfloat16")
    x = ops.cast(data((8, 4), "bfloat16"), "bfloat16")
    assert not kernels_in(reference, ops.cast(x, "float32"), training=True)
    compiled = tf.function(lambda x: guarded(x, training=True), jit_compile=True)
    assert compiled(x).dtype == "bfloat16"
    operations = compiled.get_concrete_function(x).graph.get_operations()
    assert "FusedBatchNormV3" not in [operation.type for operation in operations]


def test_a_subclass_keeps_its_own_formula():
    class Own(layers.BatchNormalization):
        pass

    with policy_scope("mixed_float16"):
        assert "normalization" not in names(Own())
        assert "normalization" in names(layers.BatchNormalization())


def test_statistics_of_large_numbers_do_not_overflow():
    guarded, _ = pair("float16", momentum=0.0)
    x = ops.cast([[60000.0, 1.0], [-60000.0, 1.0]] * 8, "float16")
    outputs = guarded(x, training=True)
    np.testing.assert_array_equal(outputs, [[1.0, 0.0], [-1.0, 0.0]] * 8)
    largest = float(ops.cast(60000.0, "float16")) ** 2
    np.testing.assert_allclose(guarded.moving_variance, [largest, 0.0], rtol=1e-6)


def test_a_model_with_an_unknown_number_of_rows_trains():
    with policy_scope("mixed_bfloat16"):
        model = keras.Sequential(
            [keras.Input((None, 3)), layers.BatchNormalization(), layers.Dense(1)]
        )
    model.compile("sgd", "mse")
    history = model.fit(RANDOM.normal(size=(8, 5, 3)), np.ones((8, 5, 1)), verbose=0)
    assert np.isfinite(history.history["loss"][0])
