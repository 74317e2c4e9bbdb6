"""What Keras keeps private of training holds on the Keras at hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import private


def test_build_for_creates_every_variable():
    model = keras.Sequential(
        [
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", loss="mse", metrics=["mae"])
    x, y = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
    assert not model.built
    private.trainer.build_for(model, (tf.constant(x), tf.constant(y)))
    assert [w.shape for w in model.trainable_variables][0] == (4, 3)
    before = (
        len(model.variables),
        len(model.metrics_variables),
        len(model.optimizer.variables),
    )
    model.train_on_batch(x, y)
    after = (
        len(model.variables),
        len(model.metrics_variables),
        len(model.optimizer.variables),
    )
    assert before == after
    private.trainer.build_for(model, (tf.constant(x), tf.constant(y)))
    assert len(model.variables) == after[0]


class Gan(keras.Model):
    """Trains by a step of its own, and refuses to be called with its data."""

    def __init__(self):
        super().__init__()
        self.part = keras.layers.Dense(1)

    def call(self, inputs):
        raise ValueError("needs two inputs")

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.losses.mean_squared_error(y, self.part(x)))
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self.part.trainable_variables)
        self.optimizer.apply(gradients, self.part.trainable_variables)
        return {"loss": loss}


def test_an_eager_model_that_cannot_be_called_trains_by_its_own_step():
    model = Gan()
    optimizer = keras.optimizers.SGD()
    keras_mp.compile(model, optimizer, policy="mixed_float16", run_eagerly=True)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert model.optimizer.stats()["steps"] == 1


def dense(**options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", **{"loss": "mse"} | options)
    return model


def own(y, prediction):
    return keras.ops.mean(y - prediction)


class OwnMetrics(keras.Sequential):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {}


def with_own_metrics():
    model = OwnMetrics([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (dense, False),
        (lambda: dense(metrics=["mae", keras.metrics.AUC()]), False),
        (lambda: dense(loss=[keras.losses.huber]), False),
        (lambda: dense(loss=own), True),
        (lambda: dense(metrics=[keras.metrics.MeanMetricWrapper(own)]), True),
        (lambda: dense(weighted_metrics=[own]), True),
        (with_own_metrics, True),
    ],
)
def test_own_code_is_found_wherever_a_step_calls_it(make, expected):
    model = make()
    assert private.trainer.runs_own_code(model) == expected


def under_a_strategy():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    return model


def test_strategy_of_is_the_models_own():
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    outside = keras.Sequential()
    with strategy.scope():
        inside = keras.Sequential()
        assert private.trainer.strategy_of(outside) is None
        assert outside.distribute_strategy is strategy  # the reason for the function
    assert private.trainer.strategy_of(inside) is strategy


def test_build_from_draws_a_batch_only_for_an_unbuilt_model():
    drawn = []

    def batches(epoch_iterator):
        for first, last, _ in epoch_iterator:
            drawn.append(first)
            yield first, last, [(tf.TensorSpec((2, 4)), tf.TensorSpec((2, 1)))]

    model = under_a_strategy()
    private.trainer.build_from(model, batches)
    for _ in range(2):
        model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0)
        model.evaluate(np.ones((2, 4)), np.ones((2, 1)), verbose=0)
    assert drawn == [0]
    assert model.layers[0].kernel.shape == (4, 1)


def test_build_from_leaves_a_model_without_call_to_its_train_step():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Model()
    private.trainer.build_from(model, None)
    model._maybe_symbolic_build(iterator=[])


def test_run_steps_with_gets_a_function_that_takes_lists_of_batches():
    functions = []

    def choose(step, make):
        function = make()
        functions.append(function)
        return lambda iterator: function([next(iterator)])

    model = under_a_strategy()
    private.trainer.run_steps_with(model, choose, "mark")
    model.fit(np.ones((6, 4)), np.ones((6, 1)), batch_size=2, verbose=0)
    assert len(functions) == 1
    assert model.optimizer.iterations == 3
    batch = (tf.ones((2, 4)), tf.ones((2, 1)))
    assert set(functions[0]([batch])) == {"loss"}
    assert model.optimizer.iterations == 4


@pytest.mark.parametrize("loss", ["mse", ["mse", "mae"], {"a": "mse", "b": "mae"}])
def test_losses_are_made_from_targets_by_name_and_count_nothing(loss):
    x = keras.Input((2,))
    model = keras.Model(x, [keras.layers.Dense(1, name=name)(x) for name in "ab"])
    model.compile(loss=loss)
    y = {"a": np.ones((3, 1)), "b": np.ones((3, 1))}
    found = private.trainer.compiled_losses(model, y, model(np.ones((3, 2))))
    assert [name for name, _ in found] == ["a", "b"]
    means = [each for each in model.metrics if isinstance(each, keras.metrics.Mean)]
    assert [float(each.count) for each in means] == [0.0] * len(means)
    assert model.train_on_batch(np.ones((3, 2)), y)[0] > 0
