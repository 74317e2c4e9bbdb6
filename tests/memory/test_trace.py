"""The traced step is the real one, and tracing it leaves no traces."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import memory, private
from keras_mp.memory import trace

layers = keras.layers


def small(**compile_arguments):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    if compile_arguments:
        keras_mp.compile(model, **compile_arguments)
    return model


def test_the_model_stays_as_it_is():
    model = small(optimizer="adam", loss="mse")
    before = [value.copy() for value in model.get_weights()]
    policies = [layer.dtype_policy.name for layer in model.layers]
    random_state = random.getstate()
    memory.memory_report(model, 8, "mixed_float16")
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert type(model.optimizer) is keras.optimizers.Adam
    assert random.getstate() == random_state
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)


def test_names_of_later_layers_are_not_used_up():
    before = layers.Dense(1).name
    memory.memory_report(small(), 8)
    own = 2  # small() makes two
    number = int(before.removeprefix("dense").lstrip("_") or 0)
    assert layers.Dense(1).name == f"dense_{number + own + 1}"


def test_several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    outputs = {"sum": layers.Dense(2)(a + b), "kind": layers.Dense(5)(a)}
    model = keras.Model({"a": a, "b": b}, outputs)
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = {"sum": "mse", "kind": sparse}
    assert memory.memory_report(model, 8, loss=loss).activations > 0


def test_sizes_that_the_model_does_not_tell_come_from_data():
    model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
    data = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
    report = memory.memory_report(model, 1000, data=data)
    assert report.activations >= 1000 * (4 + 1 + 3) * 4
    assert not model.built
    with pytest.raises(ValueError, match=r"data=\(x, y\)"):
        memory.memory_report(model, 8)
    variable = keras.Sequential([keras.Input((None, 4)), layers.GRU(2)])
    with pytest.raises(ValueError, match="None"):
        memory.memory_report(variable, 8)


def test_without_a_policy_the_layers_keep_theirs():
    policy = keras_mp.Policy("mixed_bfloat16", float32=["head"])

    def model_under(policy):
        model = keras.Sequential([keras.Input((256,))])
        model.add(layers.Dense(256, name="body"))
        model.add(layers.Dense(256, name="head"))
        keras_mp.compile(model, "sgd", "mse", policy=policy)
        return model

    kept = memory.memory_report(model_under(policy), 4096)
    asked = memory.memory_report(model_under("float32"), 4096, policy)
    assert kept.policy == asked.policy == "mixed_bfloat16"
    assert kept.activations == asked.activations
    full = memory.memory_report(model_under("float32"), 4096)
    assert kept.activations != full.activations


class Own(keras.Model):
    """A model of a class that is not registered."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithoutConfig(keras.Model):
    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        return self.dense(x)


def test_models_of_own_classes():
    data = np.ones((2, 3), "float32"), np.ones((2, 4), "float32")
    model = Own()
    model(data[0])
    report = memory.memory_report(model, 8, "mixed_float16", data=data)
    assert report.weights == 4 * (3 * 4 + 4)
    model = WithoutConfig(layers.Dense(4))
    model(data[0])
    with pytest.raises(ValueError, match=r"Give its class get_config\(\)"):
        memory.memory_report(model, 8, data=data)


def kinds_of_operations(optimizer):
    """Return the kinds of operations in the step of many small variables."""
    equal = [layers.Dense(4) for _ in range(4)]
    model = keras.Sequential([keras.Input((4,)), *equal])
    step, _, _ = trace.trace(
        trace.recipe(model),
        lambda loss: trace.specs_of(model, 8, loss, None),
        "mixed_float16",
        None,
        {"optimizer": optimizer, "loss": "mse"},
    )
    found, queue = set(), [step.graph]
    while queue:
        graph = queue.pop()
        for op in graph.get_operations():
            found.add(op.type)
            queue += private.tracing.functions_of(graph, op)
    return found


@pytest.mark.internals
def test_the_updates_are_those_of_the_device():
    assert "ResourceApplyGradientDescent" in kinds_of_operations("sgd")
    stacked = "ResourceApplyAdam" not in kinds_of_operations("adam")
    assert stacked == (not tf.config.list_logical_devices("GPU"))


@pytest.mark.long
def test_a_model_trains_after_its_step_was_traced():
    model = small(optimizer="adam", loss="mse", policy="mixed_float16")
    data = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    for _ in range(2):
        memory.memory_report(model, 8)
        history = model.fit(*data, verbose=0).history
        assert np.isfinite(history["loss"][0])


# Constructors that do more than store.


@keras.saving.register_keras_serializable("test_trace")
class LooksAtNumbers(layers.Layer):
    """Has drop-path rates by `ops.linspace`, as a Swin transformer of KerasHub."""

    def __init__(self, given=False, **kwargs):
        super().__init__(**kwargs)
        self.given = given
        self.rates = [float(rate) for rate in keras.ops.linspace(0.0, 0.5, 3)]
        self.table = keras.ops.linspace(0.0, 1.0, 4)
        self.dropout = layers.Dropout(self.rates[1])
        if given:
            self.factor = keras.Variable(np.ones(4, "float32"))

    def call(self, x):
        return self.dropout(x) * keras.ops.cast(self.table, x.dtype)

    def get_config(self):
        return {**super().get_config(), "given": self.given}


@keras.saving.register_keras_serializable("test_trace")
class MadeOfAValue(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factor = keras.Variable(np.ones(4, "float32"))

    def call(self, x):
        return x * self.factor


def with_layer(layer):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(1)(layer(inputs)))


@pytest.mark.long
@pytest.mark.parametrize("make", [LooksAtNumbers, MadeOfAValue])
@pytest.mark.parametrize("policy", [None, "mixed_float16"])
def test_constructors_that_look_at_numbers_or_hold_them(make, policy):
    report = memory.memory_report(with_layer(make()), 1000, policy)
    assert report.weights == 4 * (4 + 1) + (16 if make is MadeOfAValue else 0)
    assert report.largest_batch(2 * report.peak) > 1000


def test_numbers_that_a_constructor_computed_are_counted():
    @keras.saving.register_keras_serializable("test_trace")
    class Table(layers.Layer):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            self.size, self.table = size, keras.ops.linspace(0.0, 1.0, size)

        def call(self, x):
            return x + keras.ops.mean(self.table)

        def get_config(self):
            return {**super().get_config(), "size": self.size}

    few, many = (memory.memory_report(with_layer(Table(n)), 8) for n in (10**4, 10**6))
    # In float32, up to temporaries of the mean.
    assert 4e6 - 4e4 <= many.activations - few.activations <= 1.1 * 4e6


def test_the_error_is_the_true_one():
    with pytest.raises(ValueError, match="add_weight"):
        memory.memory_report(with_layer(LooksAtNumbers(given=True)), 8)

    @keras.saving.register_keras_serializable("test_trace")
    class Fails(layers.Layer):
        works = True

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            if not self.works:
                raise ZeroDivisionError("no rows in the table")

        def call(self, x):
            return x

    model = with_layer(Fails())
    Fails.works = False
    with pytest.raises(ValueError, match="no rows in the table"):
        memory.memory_report(model, 8)


def test_no_initial_value_is_computed():
    eager = []

    @keras.saving.register_keras_serializable("test_trace")
    class Watched(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            eager.append(tf.executing_eagerly())
            return keras.ops.zeros(shape, dtype)

    model = with_layer(layers.Dense(4, kernel_initializer=Watched()))
    assert eager == [True]
    memory.memory_report(model, 8)
    assert eager.count(True) == 1 and len(eager) > 1


# Models whose compile has arguments of its own.


@keras.saving.register_keras_serializable("test_trace")
class WithDefaults(keras.Model):
    def __init__(self, **kwargs):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.Dense(1)(inputs), **kwargs)

    def compile(self, optimizer="auto", loss="auto", **kwargs):
        optimizer = keras.optimizers.SGD() if optimizer == "auto" else optimizer
        super().compile(optimizer, "mse" if loss == "auto" else loss, **kwargs)

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("test_trace")
class Detector(WithDefaults):
    def compile(self, optimizer="sgd", box_loss=None):
        keras.Model.compile(self, optimizer, box_loss)


@keras.saving.register_keras_serializable("test_trace")
class Distiller(WithDefaults):
    def compile(self, optimizer, metrics, student_loss_fn, alpha=0.1):
        keras.Model.compile(self, optimizer, metrics=metrics)
        self.student_loss_fn, self.alpha = student_loss_fn, alpha

    def compute_loss(self, x, y, y_pred, *args, **kwargs):
        return self.alpha * self.student_loss_fn(y, y_pred)


BATCH = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
SGD_STATE = 16  # iterations in int64, the learning rate, and what is aligned


@pytest.mark.parametrize(
    ("make", "compiled", "given", "slots"),
    [
        (WithDefaults, None, {}, 0),
        (WithDefaults, {}, {}, 0),
        (WithDefaults, {"optimizer": "adam"}, {}, 2),
        (WithDefaults, {}, {"optimizer": "adam"}, 2),
        (WithDefaults, None, {"optimizer": "adam", "loss": "auto"}, 2),
        (Detector, {"box_loss": "mae"}, {}, 0),
        (Detector, None, {"box_loss": "mae"}, 0),
        (
            Distiller,
            {"optimizer": "adam", "metrics": ["mae"], "student_loss_fn": "of Keras"},
            {},
            2,
        ),
        (
            Distiller,
            None,
            {
                "optimizer": keras.optimizers.Adam(),
                "metrics": [keras.metrics.MeanAbsoluteError()],
                "student_loss_fn": "of Keras",
            },
            2,
        ),
    ],
)
@pytest.mark.parametrize("policy", [None, "mixed_float16"])
def test_own_compile_gets_what_was_given(make, compiled, given, slots, policy):
    def of_keras(arguments):
        mse = {"student_loss_fn": keras.losses.MeanSquaredError()}
        return arguments | mse if "student_loss_fn" in arguments else arguments

    model = make()
    if compiled is not None:
        model.compile(**of_keras(compiled))
    report = memory.memory_report(model, 8, policy, data=BATCH, **of_keras(given))
    assert report.weights == 4 * (4 + 1)
    state = report.optimizer_state - slots * report.weights
    scaler = 100 if policy else 0  # scale, counters and the like
    assert 0 <= state <= SGD_STATE + scaler
    assert model.compiled == (compiled is not None)
