"""A monitor reads every layer, warns of trends by name, and changes nothing."""

import csv
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.updates import assert_same
from support.watched import LAYERS, compiled, data, fit, state

import keras_mp
from keras_mp.callbacks import NumericsMonitor
from keras_mp.scaling import StaticLossScale

# Nothing is changed.


@pytest.mark.long
def test_a_model_compiled_by_keras_alone():
    def train(callbacks):
        keras.utils.set_random_seed(1)
        keras.config.set_dtype_policy("mixed_float16")
        model = keras.Sequential(
            [keras.Input((8,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
        )
        model.compile("sgd", "mse")
        return model, fit(model, callbacks)

    alone, expected = train([])
    monitor = NumericsMonitor(1)
    model, history = train([monitor])
    assert history == expected
    assert_same(state(model), state(alone))
    assert monitor.history[0].scale == 2.0**15


# What is read.


@pytest.mark.long
def test_numbers_are_those_of_the_step():
    model = compiled(scaling=StaticLossScale(64.0))
    monitor = NumericsMonitor(1, rows=4)
    x, y = data(4)
    dense = model.get_layer("first")
    expected = keras.ops.convert_to_numpy(dense(x)).astype("float32")
    fit(model, [monitor], rows=4, epochs=1)
    snapshot = monitor.history[0]
    reading = snapshot.layers["net/first"]
    assert (snapshot.step, snapshot.scale, reading.dtype) == (1, 64.0, "float16")
    assert reading.output.size == expected.size
    largest = float(np.abs(expected).max())
    assert reading.output.largest == largest
    assert reading.headroom == math.log2(65504 / largest)
    head = snapshot.layers["net/head"]
    # The gradient of a mean of 8 squares, times the loss scale.
    assert head.gradient.size == 8 and head.dtype == "float32"
    assert snapshot.loss > 0 and head.gradient.largest > 1


@pytest.mark.long
def test_gradients_are_scaled():
    def largest(scale):
        monitor = NumericsMonitor(1)
        fit(compiled(scaling=StaticLossScale(scale)), [monitor], rows=4, epochs=1)
        return monitor.history[0].layers["net/block_2/ffn"].gradient.largest

    # Rounding of subnormal gradients apart, which is at most 2**-24.
    assert largest(1024.0) == pytest.approx(1024 * largest(1.0), rel=0.05)


def test_a_shared_layer_is_read_in_all_its_calls():
    inputs = keras.Input((8,))
    shared = keras.layers.Dense(8, name="shared")
    outputs = keras.layers.Dense(2)(shared(shared(inputs)))
    model = keras.Model(inputs, outputs, name="net")
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    monitor = NumericsMonitor(1)
    fit(model, [monitor], rows=4, epochs=1)
    assert monitor.history[0].layers["net/shared"].output.size == 2 * 4 * 8


@pytest.mark.long
def test_rows_sample_and_keep():
    monitor = NumericsMonitor(1, rows=2, sample=5, keep=4)
    fit(compiled(), [monitor])
    assert [each.step for each in monitor.history] == [15, 16, 17, 18]
    # 2 rows of 16 numbers, of which every seventh.
    assert monitor.history[0].layers["net/first"].output.size == 5


@pytest.mark.long
def test_steps_are_counted_over_all_calls_of_fit():
    monitor = NumericsMonitor(4)
    model = compiled()
    fit(model, [monitor], epochs=1)
    fit(model, [monitor], epochs=1)
    assert [each.step for each in monitor.history] == [4, 10]


# What is written.


@pytest.mark.long
def test_the_csv_file_has_a_row_for_each_layer_and_step(tmp_path):
    path = tmp_path / "new" / "numbers.csv"
    monitor = NumericsMonitor(6, csv=path)
    fit(compiled(), [monitor])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == 3 * LAYERS
    assert [row["step"] for row in rows[::8]] == ["6", "12", "18"]
    last = monitor.history[-1].layers["net/block_2/ffn"]
    row = next(row for row in rows[16:] if row["layer"] == "net/block_2/ffn")
    assert float(row["headroom"]) == last.headroom
    assert float(row["gradient_largest"]) == last.gradient.largest


@pytest.mark.long
def test_tensorboard_gets_scalars_and_histograms(tmp_path):
    monitor = NumericsMonitor(6, log_dir=tmp_path)
    fit(compiled(), [monitor])
    values = {}
    for path in tmp_path.glob("events*"):
        for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(raw)
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                values[event.step, value.tag] = plugin, tf.make_ndarray(value.tensor)
    reading = monitor.history[0].layers["net/block_1/ffn"]
    plugin, scalar = values[6, "net/block_1/ffn/headroom"]
    assert plugin == "scalars" and scalar == np.float32(reading.headroom)
    plugin, bins = values[6, "net/block_1/ffn/exponents"]
    assert plugin == "histograms"
    assert {int(left): int(count) for left, _, count in bins} == (
        reading.output.exponents
    )


# Trends.


class Growing(keras.callbacks.Callback):
    """Multiplies the kernel of a layer by 4 after each epoch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def on_epoch_end(self, epoch, logs=None):
        self.layer.kernel.assign(4.0 * self.layer.kernel)


def plain(policy, scaling=None, widths=3):
    """Return a model of linear layers, which train no more."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(16, name=f"ffn_{index}") for index in range(widths)]
    for layer in layers:
        layer.kernel_initializer = keras.initializers.Orthogonal()
    model = keras.Sequential([keras.Input((8,)), *layers], name="net")
    model.add(keras.layers.Dense(2, name="head", kernel_initializer="zeros"))
    keras_mp.compile(
        model, keras.optimizers.SGD(0.0), "mse", policy=policy, scaling=scaling
    )
    return model


def messages(model, callbacks, epochs=9, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, callbacks, rows=4, epochs=epochs, **options)
    return [str(each.message) for each in caught if "Monitor" in str(each.message)]


@pytest.mark.long
def test_outputs_that_grow_are_warned_of_once_by_the_name_of_their_layer():
    model = plain("mixed_float16")
    # What comes after reads less, so that one layer alone comes near the end.
    after = model.get_layer("ffn_2")
    after.kernel.assign(1e-4 * after.kernel)
    monitor = NumericsMonitor(1)
    (message,) = messages(model, [monitor, Growing(model.get_layer("ffn_1"))])
    assert message.startswith("NumericsMonitor: headroom of net/ffn_1 fell from 16 to")
    assert "float16 ends at 6.55e+04" in message
    assert "has to match the layer and those that read its numbers." in message
    warned = next(
        each for each in monitor.history if each.layers["net/ffn_1"].headroom < 3
    )
    assert f"in {warned.step - 1} steps" in message


@pytest.mark.long
@pytest.mark.parametrize(
    "policy, helps",
    [
        (keras_mp.Policy("mixed_float16", ["ffn"]), False),
        (keras_mp.Policy("mixed_float16", ["sum"]), False),
        (keras_mp.Policy("mixed_float16", ["ffn", "drop"]), True),
        ("mixed_bfloat16", True),
    ],
)
def test_what_the_advice_for_outputs_says_of_policies(policy, helps):
    inputs = keras.Input((8,))
    ffn = keras.layers.Dense(8, kernel_initializer="orthogonal", name="ffn")
    hidden = keras.layers.Dropout(0.1, name="drop")(ffn(inputs))
    hidden = keras.layers.Add(name="sum")([inputs, hidden])
    outputs = keras.layers.LayerNormalization(name="norm")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(outputs))
    keras_mp.compile(model, keras.optimizers.SGD(0.0), "mse", policy=policy)
    monitor = NumericsMonitor(1)
    messages(model, [monitor, Growing(ffn)], epochs=12)
    assert math.isfinite(monitor.history[-1].loss) == helps


@pytest.mark.long
def test_gradients_that_grow_are_warned_of_under_a_static_scale():
    model = plain("mixed_float16", StaticLossScale(1024.0))
    head, before, after = map(model.get_layer, ("head", "ffn_0", "ffn_2"))
    head.kernel.assign(np.ones(head.kernel.shape))
    before.kernel.assign(1e-4 * before.kernel)  # so that outputs stay small
    after.kernel.assign(2.0**-8 * after.kernel)
    # What flows back through ffn_2 to ffn_1 grows, and on to ffn_0.
    found = messages(model, [NumericsMonitor(1), Growing(after)])
    about = [each for each in found if "the gradient of" in each]
    assert about and "the gradient of net/ffn_1 fell from" in about[0]
    assert not any("gradient of net/ffn_2" in each for each in about)
    assert "Lower the loss scale, which is a static one" in about[0]


@pytest.mark.long
def test_gradients_that_a_dynamic_scale_mends_are_not_warned_of():
    scaling = keras_mp.scaling.DynamicLossScale(initial_scale=2.0**8, growth_interval=2)
    model = plain("mixed_float16", scaling)
    head = model.get_layer("head")
    head.kernel.assign(np.ones(head.kernel.shape, "float32"))
    monitor = NumericsMonitor(1)
    assert messages(model, [monitor], epochs=40) == []
    rooms = [each.layers["net/ffn_1"].gradient_headroom for each in monitor.history]
    assert max(rooms) > 4 and min(rooms) < 1  # the scale did come near the end


@pytest.mark.long
def test_bfloat16_has_room_for_the_same():
    model = plain("mixed_bfloat16")
    found = messages(model, [NumericsMonitor(1), Growing(model.get_layer("ffn_1"))])
    assert found == []


def test_inf_is_not_blamed_on_the_layers_that_pass_it_on():
    model = plain("mixed_float16")

    class Breaking(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                kernel = model.get_layer("ffn_0").kernel
                kernel.assign(np.inf * np.ones(kernel.shape))

    monitor = NumericsMonitor(1)
    assert messages(model, [monitor, Breaking()]) == []
    last = monitor.history[-1].layers
    assert last["net/ffn_2"].headroom == 0.0 and not last["net/ffn_2"].output.finite


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, r"NumericsMonitor\(every=0\): `every` must be a whole number"),
        ({"rows": 1.5}, r"NumericsMonitor\(rows=1.5\)"),
        ({"sample": 0}, r"NumericsMonitor\(sample=0\)"),
        ({"keep": True}, r"NumericsMonitor\(keep=True\)"),
        ({"headroom": -1}, r"NumericsMonitor\(headroom=-1\): .* bits of 0 or more"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        NumericsMonitor(**arguments)


def test_a_loss_that_is_no_function():
    with pytest.raises(TypeError, match="`loss` must be a function"):
        NumericsMonitor(loss=3)


class OwnLoss(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = keras.layers.Dense(2, name="dense")

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(scaled, weights), weights, strict=True)
        )
        return {"loss": loss}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*gradients")
def test_a_step_with_a_loss_of_its_own_needs_the_loss():
    def train(monitor):
        model = OwnLoss()
        keras_mp.compile(model, "sgd", policy="mixed_float16")
        fit(model, [monitor], rows=4, epochs=2)

    with pytest.raises(ValueError, match="needs a loss that depends on the weights"):
        train(NumericsMonitor(1))
    monitor = NumericsMonitor(1, loss=keras.losses.MeanSquaredError())
    train(monitor)
    # The first step builds the model.
    assert [each.step for each in monitor.history] == [2]
    # Keras_mp hands the step float32, which the model itself returns.
    dtypes = {path: each.dtype for path, each in monitor.history[0].layers.items()}
    assert dtypes == {"own": "float32", "own/dense": "float16"}


def test_a_model_without_a_call():
    class Pair(keras.Model):
        def train_step(self, data):
            return {}

    model = Pair()
    model.compile()
    with pytest.raises(ValueError, match="has none. Leave the callback out"):
        fit(model, [NumericsMonitor(1)])
