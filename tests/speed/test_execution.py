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


def test_a_second_compile_changes_nothing():
    twice = model(keras_mp.compile)
    make = twice._make_function
    keras_mp.compile(twice, "sgd", "mse")
    assert twice._make_function is make
    assert twice.fit(batches(), shuffle=False, verbose=0).history["loss"]
