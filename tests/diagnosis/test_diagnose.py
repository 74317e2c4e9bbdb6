"""Planted faults are named, by layer and direction, and nothing else with them."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mp
from keras_mp.diagnosis.culprits import rule_for

ROWS = 16


def dense(name, units=16, activation="tanh", **kwargs):
    return layers.Dense(units, activation, name=name, **kwargs)


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def batch(*shape):
    return numbers(ROWS, *shape), numbers(ROWS, 1)


def compiled(model, loss="mse"):
    keras_mp.compile(model, "sgd", loss)
    return model


def multiply(layer, factor):
    """Multiply the largest weights of a layer."""
    layer.kernel.assign(layer.kernel * factor)


class Fault:
    """A model with one planted fault, and what is to be said of it."""

    def __init__(self, model, data, layer, phase, kind, tensor="output", **arguments):
        self.model = model
        self.data = data
        self.expected = layer, tensor, phase, kind
        self.arguments = arguments


def one_layer_of_twenty():
    names = [f"dense_{index}" for index in range(20)]
    model = keras.Sequential([keras.Input((16,)), *map(dense, names)], name="net")
    model.add(dense("head", 1, None))
    compiled(model)
    multiply(model.get_layer("dense_17"), 1e6)
    return Fault(model, batch(16), "net/dense_17", "forward", "overflow")


def one_layer_of_twenty_backward():
    def linear(name):
        return dense(name, activation=None, kernel_initializer="orthogonal")

    names = [f"dense_{index}" for index in range(20)]
    model = keras.Sequential([keras.Input((16,)), *map(linear, names)], name="net")
    model.add(dense("head", 1, None))
    compiled(model)
    # What the one makes small, the other makes large again; so its gradient is large.
    multiply(model.get_layer("dense_16"), 1e-4)
    multiply(model.get_layer("dense_17"), 1e4)
    return Fault(
        model,
        batch(16),
        "net/dense_17",
        "backward",
        "overflow",
        "gradient",
        scale=2.0**15,
    )


def attention():
    inputs = keras.Input((6, 16))
    outputs = layers.MultiHeadAttention(2, 8, name="attention")(inputs, inputs)
    outputs = dense("head", 1, None)(layers.GlobalAveragePooling1D()(outputs))
    model = compiled(keras.Model(inputs, outputs, name="net"))
    (value,) = [v for v in model.variables if v.path.endswith("value/kernel")]
    value.assign(value * 1e6)
    return Fault(model, batch(6, 16), "net/attention/value", "forward", "overflow")


def lstm():
    inputs = keras.Input((6, 16))
    outputs = layers.LSTM(16, name="lstm", activation="linear")(inputs)
    model = compiled(keras.Model(inputs, dense("head", 1, None)(outputs), name="net"))
    cell = model.get_layer("lstm").cell
    cell.kernel.assign(cell.kernel * 1e6)
    return Fault(model, batch(6, 16), "net/lstm/lstm_cell", "forward", "overflow")


def nested():
    def block(name):
        inputs = keras.Input((16,))
        return keras.Model(inputs, dense("b")(dense("a")(inputs)), name=name)

    inputs = keras.Input((16,))
    hidden = block("second")(block("first")(inputs))
    model = compiled(keras.Model(inputs, dense("head", 1, None)(hidden), name="net"))
    multiply(model.get_layer("second").get_layer("a"), 1e6)
    return Fault(model, batch(16), "net/second/a", "forward", "overflow")


def shared():
    layer = dense("shared", activation=None)
    inputs = keras.Input((16,))
    hidden = layers.Rescaling(300.0, name="louder")(layer(inputs))
    hidden = layers.Concatenate()([layer(hidden), hidden])
    model = compiled(keras.Model(inputs, dense("head", 1, None)(hidden), name="net"))
    multiply(layer, 20.0)  # its first call is right, its second overflows
    return Fault(model, batch(16), "net/shared", "forward", "overflow")


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = dense("first"), dense("second")
        self.head = dense("head", 1, None)

    def call(self, x):
        x = self.first(x)
        return self.head(x + self.second(x))


def subclassed():
    model = compiled(Subclassed(name="net"))
    model(numbers(ROWS, 16))
    multiply(model.second, 1e6)
    return Fault(model, batch(16), "net/second", "forward", "overflow")


class Cubed(layers.Layer):
    def call(self, x):
        return x * x * x / 1e4


def custom_layer():
    inputs = keras.Input((16,))
    hidden = layers.Rescaling(100.0, name="louder")(dense("first")(inputs))
    hidden = Cubed(name="cubed")(hidden)
    model = compiled(keras.Model(inputs, dense("head", 1, None)(hidden), name="net"))
    return Fault(model, batch(16), "net/cubed", "forward", "overflow")


class Masked(layers.Layer):
    def call(self, x):
        return ops.softmax(ops.where(x > -10.0, -1e9, x) * ops.cast(x > 9, x.dtype))


def mask_in_code():
    inputs = keras.Input((16,))
    hidden = Masked(name="masked")(dense("first")(inputs))
    model = compiled(keras.Model(inputs, dense("head", 1, None)(hidden), name="net"))
    return Fault(model, batch(16), "net/masked", "forward", "overflow")


def mask_in_data():
    inputs = keras.Input((16,)), keras.Input((16,), name="mask")
    hidden = layers.Add(name="masked")([dense("first")(inputs[0]), inputs[1]])
    hidden = layers.Dense(16, name="after")(hidden)
    model = compiled(keras.Model(inputs, dense("head", 1, None)(hidden), name="net"))
    x, y = batch(16)
    mask = np.where(x > 0, 0.0, -1e9).astype("float32")
    return Fault(model, ([x, mask], y), "net/after", "forward", "overflow", "input")


def plain():
    inputs = keras.Input((16,))
    hidden = dense("second")(dense("first")(inputs))
    return keras.Model(inputs, dense("head", 1, None)(hidden), name="net")


def loss():
    def exploding(y, y_pred):
        return ops.exp(1000.0 + y_pred)

    model = compiled(plain(), exploding)
    return Fault(model, batch(16), "exploding", "loss", "overflow")


def vanishing():
    model = compiled(plain(), lambda y, y_pred: 1e-9 * ops.mean(ops.square(y - y_pred)))
    return Fault(
        model, batch(16), "net/second", "backward", "underflow", "gradient", scale=1.0
    )


def row_of_data():
    x, y = batch(16)
    x[11, 3] = np.nan
    return Fault(compiled(plain()), (x, y), "keras_tensor", "input", "nan", "input")


def weight():
    model = compiled(plain())
    bias = model.get_layer("second").bias
    bias.assign(np.where(np.arange(16) == 3, np.nan, 0.0))
    return Fault(model, batch(16), "net/second", "weights", "nan", "bias")


FAULTS = [
    one_layer_of_twenty,
    one_layer_of_twenty_backward,
    attention,
    lstm,
    nested,
    shared,
    subclassed,
    custom_layer,
    mask_in_code,
    mask_in_data,
    loss,
    vanishing,
    row_of_data,
    weight,
]


# NumPy, by which TensorFlow makes the constant -1e9 of float16.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.every(3)
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_named_and_nothing_else(plant):
    with keras_mp.policy_scope("mixed_float16"):
        fault = plant()
    before = [np.asarray(v) for v in fault.model.variables]
    diagnosis = keras_mp.diagnose(fault.model, *fault.data, **fault.arguments)
    print(diagnosis)
    assert [culprit[:4] for culprit in diagnosis.culprits] == [fault.expected]
    for variable, value in zip(fault.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    helps = diagnosis.culprits[0].phase in ("forward", "backward")
    assert (diagnosis.suggested_policy is not None) == helps
    if helps:
        check_suggestion(fault, diagnosis)


# A batch of finite gradients skips no step.
SKIPPED = [fault for fault in FAULTS if fault is not vanishing]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.every(3)
@pytest.mark.parametrize("plant", SKIPPED, ids=lambda plant: plant.__name__)
def test_the_callback_names_it_too_when_the_step_was_skipped(plant):
    with keras_mp.policy_scope("mixed_float16"):
        fault = plant()
    monitor = keras_mp.callbacks.OverflowMonitor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fault.model.fit(*fault.data, ROWS, verbose=0, callbacks=[monitor])
    assert monitor.skipped == 1
    said = [str(each.message) for each in caught]
    said = [message for message in said if "OverflowMonitor" in message]
    layer, tensor, phase, _ = fault.expected
    if phase == "backward":  # the first scale is too large for it: no layer's fault
        assert "first loss scale" in said[0]
        assert rule_for(layer) in said[0]
    else:
        (report,) = monitor.reports
        assert [each[:3] for each in report.culprits] == [(layer, tensor, phase)]
        assert rule_for(layer) in said[0]


def check_suggestion(fault, diagnosis):
    """Check that the batch is clean under the policy, and with one rule less is not."""

    def culprits_under(rules):
        policy = keras_mp.Policy("mixed_float16", rules)
        keras_mp.compile(fault.model, "sgd", fault.model.loss, policy=policy)
        lowest = keras_mp.diagnose(fault.model, *fault.data, scale=1.0)
        fitting = lowest.largest_safe_scale or 1.0
        return keras_mp.diagnose(fault.model, *fault.data, scale=fitting).culprits

    rules = diagnosis.suggested_policy.rules
    assert culprits_under(rules) == ()
    for rule in rules[:2]:  # one for one of twenty layers needs several, all alike
        assert culprits_under([each for each in rules if each != rule])


def test_losses_of_several_outputs_and_of_layers():
    class Added(layers.Layer):
        def call(self, x):
            self.add_loss(ops.exp(ops.cast(ops.mean(x * x), "float32") + 1000.0))
            return x

    x, y = batch(16)
    with keras_mp.policy_scope("mixed_float16"):
        inputs = keras.Input((16,))
        hidden = dense("first")(inputs)
        outputs = {name: dense(name, 1, None)(hidden) for name in ("one", "other")}
        model = keras.Model(inputs, outputs, name="net")
        added = keras.Model(inputs, dense("head", 1, None)(Added(name="added")(hidden)))
    wrong = {"one": "mse", "other": lambda y, y_pred: ops.exp(1000.0 + y_pred)}
    diagnosis = keras_mp.diagnose(compiled(model, wrong), x, {"one": y, "other": y})
    (culprit,) = diagnosis.culprits
    assert culprit[:4] == ("other", "output", "loss", "overflow")
    assert diagnosis.suggested_policy is None
    (culprit,) = keras_mp.diagnose(compiled(added), x, y).culprits
    assert culprit.layer.endswith("/added")
    assert culprit[1:4] == ("output", "loss", "overflow")


class OwnStep(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.head = dense("first"), dense("head", 1, None)

    def call(self, x):
        return self.head(self.first(x))

    def train_step(self, data):
        return {"loss": ops.mean(self(data[0]))}


def test_a_step_of_the_users_own_needs_its_loss():
    with keras_mp.policy_scope("mixed_float16"):
        model = OwnStep(name="net")
    keras_mp.compile(model, "sgd")
    x, y = batch(16)
    with pytest.raises(ValueError, match=r"needs a loss.*Pass loss="):
        keras_mp.diagnose(model, x, y)
    found = keras_mp.diagnose(model, x, y, loss=keras.losses.mean_squared_error)
    assert found.culprits == ()
    multiply(model.first, 1e6)
    found = keras_mp.diagnose(model, x, y, loss=keras.losses.mean_squared_error)
    (culprit,) = found.culprits
    assert culprit[:4] == ("net/first", "output", "forward", "overflow")


class NoCall(keras.Model):
    def train_step(self, data):
        return {}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("model",), TypeError, "needs a Keras model"),
        ((NoCall(),), ValueError, "needs a model with a `call`"),
        ((keras.Sequential([layers.Dense(1)]),), ValueError, "is not compiled"),
    ],
)
def test_bad_models(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_mp.diagnose(*arguments, *batch(16))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_scales(scale):
    with pytest.raises(ValueError, match="finite loss scale above 0"):
        keras_mp.diagnose(compiled(plain()), *batch(16), scale=scale)


def test_float32_has_culprits_too():
    model = compiled(plain())
    multiply(model.get_layer("second"), float("inf"))
    (culprit,) = keras_mp.diagnose(model, *batch(16)).culprits
    assert culprit[:4] == ("net/second", "kernel", "weights", "overflow")
