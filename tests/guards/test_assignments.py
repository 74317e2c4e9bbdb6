"""Variables that a layer assigns in its call hold what float32 would have."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_mp

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* failed in:UserWarning")

STEPS = 3000
X = np.full((STEPS, 4), 3.0, "float32")


class Counter(layers.Layer):
    def build(self, shape):
        self.steps, self.down = (
            self.add_weight(shape=(), initializer="zeros", trainable=False)
            for _ in range(2)
        )
        self.seen = None

    def call(self, x, training=None):
        if training:
            self.steps.assign_add(1.0)
            self.down.assign_sub(ops.cast(1.0, x.dtype))
        self.seen = x.dtype
        return x


class Average(Counter):
    def call(self, x, training=None):
        if training:
            self.steps.assign(0.999 * self.steps + 0.001 * ops.mean(x))
            self.down.assign(self.steps + 1.0)  # to another variable
        return x


class Measured(layers.Layer):
    def __init__(self):
        super().__init__()
        self.metric = keras.metrics.Mean(name="metric")

    def call(self, x, training=None):
        if training:
            self.metric.update_state(0.3 * ops.ones((8,)))
        return x


class Inside(layers.Layer):
    """Assigns a variable of a layer inside it, as moving averages of weights do."""

    def __init__(self):
        super().__init__()
        self.net, self.average = layers.Dense(4), layers.Dense(4, trainable=False)

    def build(self, shape):
        self.net.build(shape)
        self.average.build(shape)

    def call(self, x, training=None):
        if training:
            mean = 0.999 * self.average.bias + 0.001 * ops.ones((4,))
            self.average.bias.assign(mean)
        return self.net(x)


def trained(layer, policy, eagerly=False):
    model = keras.Sequential([keras.Input((4,)), layer, layers.Dense(1)])
    keras_mp.compile(
        model, keras.optimizers.SGD(0.0), "mse", policy=policy, run_eagerly=eagerly
    )
    rows = X[:40] if eagerly else X
    model.fit(rows, np.ones((len(rows), 1)), batch_size=1, verbose=0)
    return model.layers[0]


LOW = pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])


@pytest.mark.long
@pytest.mark.every(2)
@LOW
def test_counters_count_on_and_code_keeps_its_dtype(policy):
    layer = trained(Counter(), policy)
    # Steps that are skipped change nothing.
    assert float(layer.steps) > STEPS - 20
    assert float(layer.down) == -float(layer.steps)
    assert keras.backend.standardize_dtype(layer.seen) == policy.removeprefix("mixed_")


@pytest.mark.long
@pytest.mark.every(2)
@LOW
def test_moving_averages_are_not_rounded(policy):
    layer = trained(Average(), policy)
    # As in float32, but for steps that were skipped; float16 would stop at 3.07.
    assert float(layer.steps) == pytest.approx(3 * (1 - 0.999**STEPS), rel=1e-3)
    assert float(layer.down) == float(layer.steps) + 1.0


@pytest.mark.long
@pytest.mark.every(2)
@LOW
def test_metrics_inside_layers_are_not_rounded(policy):
    layer = trained(Measured(), policy)
    assert float(layer.metric.result()) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.long
@pytest.mark.every(2)
@LOW
def test_variables_of_layers_inside_count_too(policy):
    layer = trained(Inside(), policy)
    # 3,000 sums in float32, each of an error of 6e-8, and skipped steps.
    expected = 1 - 0.999**STEPS
    np.testing.assert_allclose(layer.average.bias, [expected] * 4, rtol=1e-3)


def test_eager_steps():
    layer = trained(Average(), "mixed_bfloat16", eagerly=True)
    assert float(layer.steps) == pytest.approx(3 * (1 - 0.999**40), rel=1e-5)


@pytest.mark.long
def test_float32_is_left_alone():
    layer = trained(Average(), "float32")
    assert "assign" not in vars(layer.steps)
