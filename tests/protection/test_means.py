"""What logs say of steps that were skipped, or whose loss or a metric is not finite."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import scaling

X = np.ones((8, 1), "float32")
Y = np.zeros((8, 1), "float32")
WAYS = [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}]


def compiled(cls=keras.Sequential, optimizer="sgd", **arguments):
    """Return a model that predicts what it is given until a step is applied."""
    head = keras.layers.Dense(1, kernel_initializer="ones", dtype="float32")
    model = cls([keras.Input((1,)), head])
    arguments = {"loss": "mse", "scaling": scaling.StaticLossScale(8.0), **arguments}
    keras_mp.compile(model, optimizer, **arguments)
    return model


def frozen(**arguments):
    return compiled(optimizer=keras.optimizers.SGD(0.0), **arguments)


def batches(*numbers):
    """Return rows of one number each, and targets of 0."""
    rows = np.array(numbers, "float32")[:, None]
    return rows, np.zeros_like(rows)


class Seen(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


def fit(model, data, **arguments):
    """Return what the steps, of one row each, and the epochs of a ``fit`` read."""
    seen = Seen()
    arguments |= {"batch_size": 1, "shuffle": False, "verbose": 0}
    history = model.fit(*data, callbacks=[seen], **arguments).history
    return seen.logs, history


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_skipped_step_whose_loss_is_finite_counts(options):
    x = np.array([[2.0], [4.0]], "float32")
    model = frozen(
        scaling=scaling.StaticLossScale(2.0**127), metrics=["mae"], **options
    )
    history = model.fit(x, Y[:2], batch_size=1, shuffle=False, verbose=0).history
    stats = model.optimizer.stats()
    assert (stats["skipped"], stats["nonfinite_losses"]) == (2, 0)
    assert history == {"loss": [10.0], "mae": [3.0]}


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_each_metric_leaves_out_what_is_not_finite_for_it(options):
    # The square of 1e30 is infinite in float32; its absolute value is not.
    model = frozen(metrics=["mae", "mse"], **options)
    _, history = fit(model, batches(2.0, 1e30, 4.0, 4.0))
    assert history["loss"] == history["mse"] == [12.0]
    assert history["mae"] == [pytest.approx(2.5e29)]
    assert model.optimizer.stats()["nonfinite_losses"] == 1


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("kind", [lambda: "mse", keras.metrics.MeanSquaredError])
def test_the_first_batch_may_be_the_one_left_out(kind, options):
    # Keras lists metrics that were given as objects from the first batch on only.
    model = frozen(metrics=[kind()], **options)
    _, history = fit(model, batches(1e30, 1.0, 1.0, 4.0))
    (metric,) = set(history) - {"loss"}
    assert history["loss"] == history[metric] == [6.0]


@pytest.mark.parametrize("options", WAYS[:3], ids=str)
def test_a_step_reads_the_mean_so_far_or_nan(options):
    model = frozen(metrics=["mae"], **options)
    steps, _ = fit(model, batches(np.nan, 2.0, np.inf, 4.0), epochs=2)
    for epoch in steps[:4], steps[4:]:
        np.testing.assert_equal([logs["loss"] for logs in epoch], [np.nan, 4, 4, 10])
        np.testing.assert_equal([logs["mae"] for logs in epoch], [np.nan, 2, 2, 3])


@pytest.mark.long
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_an_epoch_in_which_no_loss_was_finite_reads_nan(options):
    model = frozen(metrics=["mae", keras.metrics.AUC(name="auc")], **options)
    _, history = fit(model, batches(np.nan, np.nan))
    np.testing.assert_equal(history["loss"] + history["mae"], [np.nan, np.nan])
    _, history = fit(model, batches(0.5, 0.5))
    assert history["loss"] == [0.25] and history["mae"] == [0.5]
    assert model.optimizer.stats()["nonfinite_losses"] == 2


@pytest.mark.long
def test_train_on_batch_reads_nan_then_what_is():
    model = frozen(metrics=["mae"])
    assert np.isnan(model.train_on_batch(np.full((2, 1), np.inf), Y[:2])).all()
    assert model.train_on_batch(2 * X, Y) == [4.0, 2.0]
    assert model.evaluate(2 * X, Y, verbose=0) == [4.0, 2.0]


def test_a_step_that_is_applied_may_have_a_loss_that_is_not_finite():
    def loss(y_true, y_pred):
        # Like log(0) times 0: infinite forward, finite backward.
        return y_pred + tf.stop_gradient(tf.where(y_pred > 5.0, np.inf, 0.0))

    model = frozen(loss=loss)
    _, history = fit(model, batches(2.0, 6.0, 4.0))
    stats = model.optimizer.stats()
    assert (stats["applied"], stats["nonfinite_losses"]) == (3, 1)
    assert history["loss"] == [3.0]


class Lowest(keras.metrics.Metric):
    """Starts from inf, and keeps a number that is NaN for good."""

    def __init__(self, name="lowest"):
        super().__init__(name=name)
        self.value = self.add_variable((), "zeros")
        self.hole = self.add_variable((), keras.initializers.Constant(np.nan))
        self.value.assign(np.inf)

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(keras.ops.minimum(self.value, keras.ops.min(y_pred)))

    def reset_state(self):
        self.value.assign(np.inf)

    def result(self):
        return self.value


@pytest.mark.long
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_metrics_that_hold_inf_or_nan_by_themselves_are_left_alone(options):
    model = frozen(metrics=[Lowest()], **options)
    _, history = fit(model, batches(3.0, np.inf, 2.0, 4.0), epochs=2)
    assert history["lowest"] == [2.0, 2.0]


def test_metrics_of_no_floats_and_of_several_results():
    class Counts(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="counts")
            self.rows = self.add_variable((), "zeros", dtype="int32")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.rows.assign_add(1)

        def result(self):
            return {"rows": self.rows, "twice": 2 * self.rows}

    model = frozen(metrics=[Counts()])
    _, history = fit(model, batches(1.0, np.inf))
    assert history == {"loss": [1.0], "rows": [2], "twice": [4]}


def test_several_outputs_are_told_apart():
    x = keras.Input((1,))
    layer = keras.layers.Rescaling(1.0, dtype="float32", name="exact")
    model = keras.Model(x, [layer(keras.layers.Dense(1, name="low")(x)), layer(x)])
    keras_mp.compile(model, "sgd", loss=["mae", "mse"], scaling="dynamic")
    ones = np.ones((2, 1), "float32")
    y = [ones, np.array([[np.nan], [3.0]], "float32")]
    logs = model.fit(ones, y, batch_size=1, shuffle=False, verbose=0).history
    assert all(np.isfinite(value) for values in logs.values() for value in values)
    assert model.optimizer.stats()["nonfinite_losses"] == 1


# Logs of the user's own.


def own_logs(**logs):
    """Return a model class whose ``train_step`` returns these logs beside its own."""

    class Own(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data) | {name: f() for name, f in logs.items()}

    return Own


@pytest.mark.parametrize("options", WAYS[:3], ids=str)
def test_logs_of_any_structure_pass_through(options):
    class Nested(keras.Sequential):
        def train_step(self, data):
            loss = super().train_step(data)["loss"]
            return {"loss": {"total": loss}, "all": [tf.ones((2, 3)), tf.ones((2, 3))]}

    model = compiled(Nested, **options)
    logs = model.train_step((tf.constant(X), tf.constant(Y)))
    assert set(logs) == {"loss", "all"} and set(logs["loss"]) == {"total"}
    assert float(logs["loss"]["total"]) == 1.0
    history = model.fit(X, Y, verbose=0).history
    assert np.isfinite(history["total"]).all()  # Keras itself flattens them
    assert np.shape(history["all"][0]) == (2, 2, 3)


@pytest.mark.parametrize(
    "value", [lambda: tf.ones((2, 3)), lambda: tf.constant(7), lambda: {"a": 7.0}]
)
def test_a_log_by_the_name_of_a_metric_may_be_something_else(value):
    model = compiled(own_logs(mae=value), metrics=["mae"])
    for x in (np.inf * X, X):
        logs = model.train_step((tf.constant(x), tf.constant(Y)))
        keras.tree.map_structure(np.testing.assert_array_equal, logs["mae"], value())


def test_a_loss_of_its_own_is_passed_on_and_counted():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1, dtype="float32")

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.head(x) - y) ** 2)
                scaled = self.optimizer.scale_loss(loss)
            weights = self.trainable_weights
            self.optimizer.apply(tape.gradient(scaled, weights), weights)
            return {"d_loss": loss}

    model = Own()
    keras_mp.compile(model, "sgd", scaling="dynamic")
    steps, _ = fit(model, batches(1.0, np.inf, 1.0))
    finite = np.isfinite([logs["d_loss"] for logs in steps])
    np.testing.assert_array_equal(finite, [True, False, True])
    assert model.optimizer.stats()["nonfinite_losses"] == 1


# What is left alone.


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_a_model_without_a_guard_reads_what_keras_reads(policy):
    def read(compile, **arguments):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        compile(model, "sgd", "mse", metrics=["mae"], **arguments)
        return fit(model, batches(1.0, 1e30, 1.0))

    # With the head in the policy's dtype, as Keras has it.
    with keras_mp.policy_scope(keras_mp.Policy(policy, allow=[keras.layers.Dense])):
        ours = read(keras_mp.compile, guard=False)
        theirs = read(keras.Model.compile)
    assert not np.isfinite(theirs[1]["loss"]).any()
    np.testing.assert_equal(ours, theirs)


@pytest.mark.long
def test_finite_steps_read_what_keras_reads():
    def read(compile, **arguments):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        compile(model, "sgd", "mse", metrics=["mae", "mape"], **arguments)
        return fit(model, batches(1.0, 2.0, 3.0), epochs=2)

    ours = read(keras_mp.compile, scaling=scaling.StaticLossScale(8.0))
    assert ours == read(keras.Model.compile)
