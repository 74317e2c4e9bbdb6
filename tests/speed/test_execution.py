"""What ``fit`` and ``evaluate`` call: Keras's steps, without an Optional."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp

ROWS = 20  # five batches


def model(compile, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    compile(model, keras.optimizers.Adam(0.1), "mse", metrics=["mae"], **options)
    return model


def plain(model, optimizer, loss, **options):
    model.compile(optimizer, loss, auto_scale_loss=False, **options)


def batches(rows=ROWS, size=4):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(rows, 4)), random.normal(size=(rows, 1))
    numbers = x.astype("float32"), y.astype("float32")
    return tf.data.Dataset.from_tensor_slices(numbers).batch(size)


@pytest.fixture
def no_optional(monkeypatch):
    def refuse(value):
        raise AssertionError("logs were put into an Optional")

    monkeypatch.setattr(tf.experimental.Optional, "from_value", refuse)


def test_logs_come_without_an_optional(no_optional):
    ours = model(keras_mp.compile)
    ours.fit(batches(), shuffle=False, verbose=0)
    ours.evaluate(batches(), verbose=0)
    with pytest.raises(AssertionError, match="Optional"):
        model(plain).fit(batches(), shuffle=False, verbose=0)


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jit_compile": True},
        {"jit_compile": False},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
    ],
    ids=str,
)
def test_histories_are_those_of_keras(options):
    # The last batch has two rows.
    ours, bare = (
        each.fit(
            batches(ROWS + 2),
            epochs=3,
            validation_data=batches(6),
            shuffle=False,
            verbose=0,
        ).history
        for each in (model(keras_mp.compile, **options), model(plain, **options))
    )
    assert ours.keys() == bare.keys() >= {"loss", "mae", "val_loss", "val_mae"}
    for name, values in bare.items():
        # XLA and fused updates round in another order.
        np.testing.assert_allclose(ours[name], values, rtol=1e-4)


def test_data_that_ends_early_ends_training_as_in_keras():
    def caught(compile):
        each = model(compile)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            each.fit(batches(), epochs=2, steps_per_epoch=4, shuffle=False, verbose=0)
        return int(each.optimizer.iterations), [str(w.message) for w in said]

    ours, bare = caught(keras_mp.compile), caught(plain)
    assert ours == bare
    assert ours[0] == 5


def test_each_batch_is_traced_once_by_its_shape():
    traced = []

    class Counting(keras.Sequential):
        def train_step(self, data):
            traced.append(data[0].shape)
            return super().train_step(data)

    counting = Counting([keras.Input((4,)), keras.layers.Dense(1)])
    keras_mp.compile(counting, "sgd", "mse")
    counting.fit(batches(), epochs=3, shuffle=False, verbose=0)
    counting.fit(batches(), shuffle=False, verbose=0)
    assert len(traced) == 1


@pytest.fixture
def updates(monkeypatch):
    """The list of all calls of the optimizer, each of which traces an update."""
    made = []
    apply = keras_mp.LossScaleOptimizer.apply_gradients

    def counted(optimizer, *arguments):
        made.append(optimizer)
        return apply(optimizer, *arguments)

    monkeypatch.setattr(keras_mp.LossScaleOptimizer, "apply_gradients", counted)
    return made


def two_outputs(compile, **options):
    x = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=name)(x) for name in "ab"]
    two = keras.Model(x, outputs)
    losses = [keras.losses.MeanSquaredError(), "mae"]
    compile(two, "adam", losses, metrics=[["mae"], []], **options)
    return two


def fit_two(two):
    x, y = next(iter(batches()))
    two.fit(x, [y, y], epochs=2, verbose=0)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=str,
)
def test_a_step_is_traced_once_though_it_needs_new_variables(updates, options):
    one = model(keras_mp.compile, policy="mixed_float16", **options)
    one.fit(batches(), shuffle=False, epochs=2, verbose=0)
    assert len(updates) == 1
    fit_two(two_outputs(keras_mp.compile, policy="mixed_float16", **options))
    assert len(updates) == 2


def shapes(variables):
    return [(tuple(variable.shape), variable.dtype) for variable in variables]


@pytest.mark.long
def test_variables_are_those_of_keras():
    ours = two_outputs(keras_mp.compile, policy="mixed_float16")
    bare = two_outputs(plain)
    for each in ours, bare:
        fit_two(each)
    found, wanted = ours.optimizer.inner_optimizer.variables, bare.optimizer.variables
    assert shapes(found) == shapes(wanted)
    assert shapes(ours.metrics_variables) == shapes(bare.metrics_variables)


def test_evaluation_makes_no_variables_of_the_optimizer():
    one = model(keras_mp.compile, policy="mixed_float16")
    one.evaluate(batches(), verbose=0)
    assert not one.optimizer.inner_optimizer.built


def test_a_frozen_model_can_be_thawed():
    one = model(keras_mp.compile)
    one.trainable = False
    with pytest.warns(UserWarning, match="any trainable weights"):
        one.fit(batches(), shuffle=False, verbose=0)
    one.trainable = True
    keras_mp.compile(one, keras.optimizers.Adam(0.1), "mse")
    before = one.get_weights()
    one.fit(batches(), shuffle=False, verbose=0)
    assert not np.array_equal(before[0], one.get_weights()[0])


class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def test_a_built_model_with_the_users_own_layers_is_traced_once(updates):
    own = keras.Sequential([keras.Input((4,)), Twice(), keras.layers.Dense(1)])
    keras_mp.compile(own, "adam", own_loss, policy="mixed_float16")
    own.fit(batches(), shuffle=False, verbose=0)
    assert len(updates) == 1


class WithHalves(keras.Sequential):
    """Trains one of its layers, as the step of a GAN does."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        half = self.layers[0].trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, half), half, strict=True)
        )
        return {"loss": loss}


def test_a_step_of_the_users_own_chooses_what_the_optimizer_trains():
    halves = WithHalves([keras.Input((4,)), keras.layers.Dense(3)])
    halves.add(keras.layers.Dense(1))
    keras_mp.compile(halves, keras.optimizers.SGD(momentum=0.9), "mse")
    halves.fit(batches(), shuffle=False, verbose=0)
    assert shapes(halves.optimizer.variables[2:]) == shapes(halves.layers[0].weights)


class WithLateHead(keras.layers.Layer):
    """Has a layer that is called, and so built, in training only."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(4)

    def build(self, shape):
        pass

    def call(self, inputs, training=False):
        return self.head(inputs) if training else inputs


def own_loss(y, prediction):
    own_loss.calls += 1
    return keras.ops.mean(keras.ops.square(y - prediction))


own_loss.calls = 0


@pytest.mark.long
def test_what_the_users_own_layer_creates_in_training_is_trained():
    made = []
    for compile in keras_mp.compile, plain:
        late = keras.Sequential([keras.Input((4,)), WithLateHead()])
        late.add(keras.layers.Dense(1))
        compile(late, keras.optimizers.Adam(0.1), "mse")
        late.fit(batches(), shuffle=False, verbose=0)
        made.append(shapes(late.optimizer.variables))
    assert made[0] == made[1]


def test_the_users_own_loss_and_metric_are_called_as_often_as_with_keras():
    calls = []
    for compile in keras_mp.compile, plain:
        own_loss.calls = 0
        own = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        compile(own, keras.optimizers.Adam(0.1), own_loss, metrics=[own_loss])
        own.fit(batches(), shuffle=False, verbose=0)
        calls.append(own_loss.calls)
    assert calls[0] == calls[1]


def test_a_second_compile_changes_nothing():
    twice = model(keras_mp.compile)
    make = twice._make_function
    keras_mp.compile(twice, "sgd", "mse")
    assert twice._make_function is make
    assert twice.fit(batches(), shuffle=False, verbose=0).history["loss"]
