"""What is alive at the peak: loops, branches, updates in place, kinds of tensors."""

import keras
import pytest

from keras_mp import memory, stacks

layers = keras.layers


def test_loops_keep_what_the_backward_pass_needs():
    def recurrent(length):
        model = keras.Sequential([keras.Input((length, 16)), layers.LSTM(64)])
        return memory.memory_report(model, 256, optimizer="sgd").activations

    # Each step keeps four gates, the cell, its tanh and the output: 64 floats each.
    step = 256 * 64 * 4
    assert 5 * step <= (recurrent(40) - recurrent(20)) / 20 <= 10 * step


#: For which the last layer computes in the policy's dtype.
LOGITS = keras.losses.BinaryCrossentropy(from_logits=True)


def test_a_skipped_steps_branch_is_part_of_the_step():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    report = memory.memory_report(model, 8, "mixed_float16")
    plain = memory.memory_report(model, 8)
    assert report.optimizer_state > plain.optimizer_state  # scale and counters


def test_gradients_are_told_apart():
    model = keras.Sequential([keras.Input((512,)), layers.Dense(512)])
    gradient = 512 * 512 * 4
    # In float16 it is there twice, as it was computed and as it is judged.
    for policy, copies in ("float32", 1.0), ("mixed_float16", 1.5):
        report = memory.memory_report(model, 1, policy, loss=LOGITS)
        assert 1.0 <= report.gradients / (copies * gradient) <= 1.1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_updates_write_in_place(optimizer, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 512 * 512)  # XLA compiles RMSprop's
    model = keras.Sequential([keras.Input((512,)), layers.Dense(512, use_bias=False)])
    report = memory.memory_report(
        model, 1, "mixed_float16", optimizer=optimizer, loss=LOGITS
    )
    variable = 512 * 512 * 4
    # The gradient twice, in float16 and in float32, and nothing that an update needs.
    alive = report.gradients + report.casts + report.activations
    assert 1.5 * variable <= alive <= 1.6 * variable


class Counter(layers.Layer):
    """Writes to a variable whose old value is still needed."""

    def build(self, _):
        self.count = self.add_weight(shape=(1000, 100), trainable=False)

    def call(self, x):
        old = self.count.value + 0.0
        self.count.assign(old + 1.0)
        return x + keras.ops.sum(old)


def test_variables_of_layers_may_be_written():
    model = keras.Sequential([keras.Input((4,)), Counter(), layers.Dense(1)])
    report = memory.memory_report(model, 8)
    size = 1000 * 100 * 4
    assert size <= report.weights <= 1.01 * size
