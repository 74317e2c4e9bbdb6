"""Lint finds a loss in float16 that nothing scales, or that is scaled twice."""

import keras
import pytest
from keras import layers
from support.lint import X, dense, found, lines, model_of

import keras_mp


def test_float16_without_loss_scaling():
    model = model_of(dense())
    model.compile("adam", "mse")  # Keras goes by the policy of the model: float32
    (finding,) = found(model, "loss-scaling")
    assert (finding.severity, finding.layer) == ("error", "net/head")
    assert "optimizer 'adam' scales no loss" in finding.reason
    keras_mp.compile(model, "adam", "mse")
    assert not keras_mp.lint(model)


def test_loss_scaling_of_keras_and_a_fixed_scale_count():
    model = model_of(dense())
    for optimizer in (
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        keras.optimizers.SGD(loss_scale_factor=1024.0),
    ):
        model.compile(optimizer, "mse")
        assert not found(model, "loss-scaling")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_other_dtypes_need_no_loss_scaling(policy):
    model = model_of(dense(dtype=policy))
    assert not found(model, "unknown")
    model.compile("adam", "mse")
    assert not found(model, "loss-scaling")


def test_a_model_that_is_not_compiled_is_a_note():
    (finding,) = found(model_of(dense(), layers.Dense(8)), "unknown")
    assert finding.severity == "note" and "not compiled" in finding.reason


class Gan(keras.Model):
    def __init__(self):
        super().__init__(name="gan")
        self.generator = model_of(dense())

    def compile(self, one, other):
        super().compile()
        self.one, self.other = one, other


def test_every_optimizer_of_a_model_is_checked():
    gan = Gan()
    gan.compile(keras.optimizers.Adam(), keras_mp.wrap_optimizer(gan, "sgd"))
    (finding,) = found(gan, "loss-scaling")
    assert "'adam'" in finding.reason and finding.layer == "gan/net/head"


def test_double_scaling():
    inner = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=4.0
    )
    twice = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    head = layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = model_of(head, shape=(1,))
    model.compile(twice, "mae")
    assert lines(found(model, "double-scaling")) == [("error", "net")]
    model.fit(X[:, :1], X[:, :1], batch_size=8, verbose=0)
    assert head.kernel.numpy() == 0.25  # as the reason says; it should be 1
    keras_mp.compile(model, keras_mp.LossScaleOptimizer("sgd"), "mse")
    assert not found(model, "double-scaling")
