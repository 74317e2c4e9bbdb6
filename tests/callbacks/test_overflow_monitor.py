"""`OverflowMonitor` names the layer, the direction and the replica."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_mp
from keras_mp.callbacks import OverflowMonitor
from keras_mp.scaling import DynamicLossScale, StaticLossScale

ROWS, BATCH = 48, 4


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 8)).astype("float32")
    return x, x[:, :1] ** 2


def linear(name, units=8):
    return layers.Dense(units, name=name, kernel_initializer="orthogonal")


def compiled(scaling=None, optimizer="sgd", **options):
    """A chain of layers with statistics and random numbers of its own."""
    keras.utils.set_random_seed(1)
    chain = [linear(f"dense_{index}") for index in range(4)]
    model = keras.Sequential(
        [
            keras.Input((8,)),
            *chain[:2],
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.3, name="drop"),
            *chain[2:],
            layers.Dense(1, name="head"),
        ],
        name="net",
    )
    scaling = scaling or DynamicLossScale(initial_scale=8.0)
    keras_mp.compile(
        model, optimizer, "mse", policy="mixed_float16", scaling=scaling, **options
    )
    return model


def fit(model, *callbacks, x=None, y=None, epochs=1):
    """Fit without shuffling, and return the messages of warnings."""
    own_x, own_y = data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(
            own_x if x is None else x,
            own_y if y is None else y,
            batch_size=BATCH,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
    ours = [each for each in caught if issubclass(each.category, UserWarning)]
    return [str(each.message) for each in ours]


def rows_of_step(step):
    return slice(BATCH * (step - 1), BATCH * step)


def forward_fault(step):
    """Return x for which the first layer overflows forward in one step."""
    x, _ = data()
    x[rows_of_step(step)] = 6e4
    return x


def backward_fault(model):
    """Have the gradient of dense_1 overflow, and the forward pass not."""
    for name, factor in (("dense_0", 1e-4), ("dense_1", 1e4)):
        layer = model.get_layer(name)
        layer.kernel.assign(layer.kernel * factor)
    model.optimizer.dynamic_scale.assign(2.0**15)


OPTIONS = {
    "plain": {},
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "several": {"steps_per_execution": 4},
    "accumulation": {
        "optimizer": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2)
    },
}


def options_of(way):
    return {
        name: value() if callable(value) else value
        for name, value in OPTIONS[way].items()
    }


def where(overflow):
    first = overflow.culprits[0]
    return first.layer, first.tensor, first.phase, first.kind


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("way", OPTIONS)
def test_forward(way):
    monitor = OverflowMonitor()
    messages = fit(compiled(**options_of(way)), monitor, x=forward_fault(5))
    assert [each.step for each in monitor.reports] == [5]
    overflow = monitor.reports[0]
    assert where(overflow) == ("net/dense_0", "output", "forward", "overflow")
    assert len(overflow.culprits) == 1
    assert (overflow.replica, overflow.scale) == (0, 8.0)
    assert len(overflow.variables) > 2
    (message,) = messages
    assert message.startswith(
        "OverflowMonitor: step 5 skipped on replica 0: the output of dense_0 "
        "overflowed (forward). "
    )
    assert "float32=['dense_0']" in message
    assert (monitor.skipped, monitor.expected) == (1, 0)


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("way", OPTIONS)
def test_backward(way):
    model = compiled(**options_of(way))
    fit(model)  # a step was applied before: this is no first scale
    backward_fault(model)
    monitor = OverflowMonitor(max_reports=1)
    messages = fit(model, monitor)
    assert where(monitor.reports[0]) == (
        "net/dense_1",
        "gradient",
        "backward",
        "overflow",
    )
    assert "the gradient of dense_1 overflowed (backward). " in messages[0]
    assert "dynamic loss scaling does so by itself" in messages[0]


@pytest.mark.long
def test_other_layers_are_named_for_other_faults():
    model = compiled()
    model.get_layer("dense_3").kernel.assign(np.full((8, 8), 6e4))
    monitor = OverflowMonitor(max_reports=1)
    fit(model, monitor)
    assert where(monitor.reports[0])[0] == "net/dense_3"


def test_data_and_weights():
    x, _ = data()
    x[9] = np.nan
    monitor = OverflowMonitor()
    (message,) = fit(compiled(), monitor, x=x)
    assert message.startswith(
        "OverflowMonitor: step 3 skipped on replica 0: the data of "
    )
    assert "Row 1 holds NaN" in message
    model = compiled()
    kernel = model.get_layer("dense_2").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    monitor = OverflowMonitor()
    messages = fit(model, monitor)
    assert "the weight kernel of dense_2 was not finite (weights)" in messages[0]
    assert monitor.skipped == 12
    # The same cause is warned of once, and counted at the end.
    named = [each for each in messages if "step " in each.split(":", 1)[1][:6]]
    assert len(named) == 1
    assert "12 times" in messages[-1]


def growing(**options):
    return DynamicLossScale(initial_scale=2.0**8, growth_interval=3, **options)


@pytest.mark.long
def test_the_overflow_of_a_growing_scale_is_counted_apart():
    model = compiled(growing(), keras.optimizers.SGD(1e-4))
    model.get_layer("drop").rate = 0.0  # so that each step has the same gradients
    monitor = OverflowMonitor()
    x, y = (np.tile(each[:BATCH], (ROWS // BATCH, 1)) for each in data())
    messages = fit(model, monitor, x=x, y=y, epochs=6)
    assert monitor.expected == monitor.skipped > 1
    assert (messages, monitor.reports) == ([], [])


@pytest.mark.long
def test_a_forward_overflow_after_growth_is_no_expected_one():
    model = compiled(growing())
    monitor = OverflowMonitor()
    messages = fit(model, monitor, x=forward_fault(4))
    assert monitor.expected == 0
    assert where(monitor.reports[0])[:3] == ("net/dense_0", "output", "forward")
    assert len(messages) == 1


@pytest.mark.long
def test_a_second_overflow_after_growth_is_no_expected_one():
    # The scale grows after step 3, and falls as step 4 is skipped.
    model = compiled(growing())
    monitor = OverflowMonitor()
    _, y = data()
    y[rows_of_step(4)] = y[rows_of_step(5)] = 3e6
    fit(model, monitor, y=y)
    assert monitor.expected == 1
    assert monitor.reports[0].step == 5
    assert where(monitor.reports[0])[2] == "backward"


@pytest.mark.long
def test_hysteresis_takes_several_after_growth():
    # The scale grows after step 3, and falls as step 5 is skipped.
    model = compiled(growing(hysteresis=2))
    monitor = OverflowMonitor()
    _, y = data()
    for step in (4, 5, 6):
        y[rows_of_step(step)] = 3e6
    fit(model, monitor, y=y)
    assert monitor.expected == 2
    assert monitor.reports[0].step == 6


@pytest.mark.long
def test_a_first_scale_that_is_too_large_is_reported_once():
    model = compiled(DynamicLossScale(initial_scale=2.0**22))
    monitor = OverflowMonitor()
    (message,) = fit(model, monitor)
    assert monitor.reports == [] and monitor.expected == 0
    scale = model.optimizer.stats()["scale"]
    assert (
        f"first loss scale of 4.1943e+06 was too large: {monitor.skipped} steps were "
        f"skipped until it had fallen to {scale:g} (the gradient of "
    ) in message


@pytest.mark.long
def test_a_static_scale_that_is_too_large():
    monitor = OverflowMonitor()
    (message,) = fit(compiled(StaticLossScale(2.0**24)), monitor)
    assert "12 steps were skipped so far" in message


def test_a_healthy_run_says_nothing():
    monitor = OverflowMonitor()
    assert fit(compiled(), monitor, epochs=2) == []
    assert (monitor.skipped, monitor.expected, monitor.reports) == (0, 0, [])


def test_a_spike_is_no_overflow():
    rule = keras_mp.SpikeRule(window=4)
    model = compiled(StaticLossScale(8.0), skip_spikes=rule)
    _, y = data()
    y[rows_of_step(9)] = 100
    monitor = OverflowMonitor()
    assert fit(model, monitor, y=y) == []
    assert model.optimizer.stats()["spikes"] == 1
    assert monitor.skipped == 0


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(each).tobytes() for each in variables]


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("way", ["plain", "jit", "several", "accumulation"])
def test_training_is_the_same_with_and_without(way):
    results = []
    for callbacks in ([], [OverflowMonitor()]):
        model = compiled(**options_of(way))
        fit(model, *callbacks, x=forward_fault(5), epochs=2)
        results.append(state(model))
    assert results[0] == results[1]


@pytest.mark.long
def test_reports_have_a_limit():
    x = forward_fault(2)
    x[rows_of_step(5)] = x[rows_of_step(8)] = 6e4
    monitor = OverflowMonitor(max_reports=2)
    messages = fit(compiled(), monitor, x=x)
    assert [each.step for each in monitor.reports] == [2, 5]
    assert monitor.skipped == 3
    assert "as max_reports says" in messages[1]


class TwoModels(keras.Model):
    """A model whose loss is computed in its own step, so its batch cannot run again."""

    def __init__(self):
        super().__init__(name="two")
        self.inner = linear("inner")

    def train_step(self, batch):
        import tensorflow as tf

        x, y = batch
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((keras.ops.cast(self.inner(x), "float32") - y) ** 2)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return {"loss": loss}


def test_a_batch_that_cannot_run_again():
    keras.utils.set_random_seed(1)
    model = TwoModels()
    keras_mp.compile(
        model,
        "sgd",
        policy="mixed_float16",
        scaling=DynamicLossScale(initial_scale=8.0),
    )
    model.inner.build((None, 8))
    monitor = OverflowMonitor()
    (message,) = fit(model, monitor, x=forward_fault(5))
    assert "the gradients of 'inner/kernel', 'inner/bias' were not finite" in message
    assert "could not run again: class TwoModels has no `call`" in message


@pytest.mark.long
def test_a_model_that_was_trained_before_is_traced_again():
    model = compiled()
    fit(model)
    monitor = OverflowMonitor()
    fit(model, monitor, x=forward_fault(5))
    assert monitor.reports[0].variables


def test_without_loss_scaling():
    model = compiled()
    model.compile("sgd", "mse")
    (message,) = fit(model, OverflowMonitor())
    assert "OverflowMonitor has nothing to watch" in message


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
def test_a_limit_that_is_none(wrong):
    match = r"OverflowMonitor\(max_reports=.*must be a whole number, 1 or more"
    with pytest.raises((TypeError, ValueError), match=match):
        OverflowMonitor(wrong)
