"""A spike is skipped, and nothing else; off, nothing is different."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.spikes import Spikes as Reference
from support.updates import DIRECT, RULES, assert_same, values

import keras_mp

MODES = ["eager", "graph", "jit"]
RULE = keras_mp.SpikeRule(deviations=4.0, window=6)
OUTLIERS = {9: 50.0, 13: 50.0, 14: np.inf, 15: 50.0}
INNER = {
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01),
}


def optimizer_for(weights, inner="sgd", *, skip_spikes=RULE, scaling=8.0):
    optimizer = keras_mp.LossScaleOptimizer(
        INNER.get(inner, lambda: inner)(), scaling, skip_spikes=skip_spikes
    )
    optimizer.build(weights)
    return optimizer


def step_of(optimizer, weights, mode):
    """Return a step of a linear loss, whose gradient is what it is called with."""

    def step(factor):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(w.value) for w in weights]) * factor
            loss = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(loss, [w.value for w in weights]), weights)

    return tf.function(step, jit_compile=mode == "jit") if mode != "eager" else step


def factors(count=20, outliers=OUTLIERS):
    random = np.random.default_rng(0)
    return [outliers.get(i, 1.0) * random.uniform(0.9, 1.1) for i in range(count)]


def skipped_steps(step, weights, factors):
    """Return which steps changed no weight."""
    found = []
    for index, factor in enumerate(factors):
        before = values(weights)
        step(tf.constant(factor, "float32"))
        if all(map(np.array_equal, before, values(weights))):
            found.append(index)
    return found


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("mode", MODES)
def test_planted_spikes_are_skipped_and_nothing_else(mode, inner):
    weights = [keras.Variable([1.0, 2.0]) for _ in range(2)]
    check_planted(optimizer_for(weights, inner), weights, mode)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["graph", "jit"])
def test_planted_spikes_of_many_variables_updated_without_a_branch(mode):
    weights = [keras.Variable([1.0, 2.0]) for _ in range(120)]
    check_planted(optimizer_for(weights), weights, mode)


def check_planted(optimizer, weights, mode):
    step = step_of(optimizer, weights, mode)
    assert skipped_steps(step, weights, factors()) == list(OUTLIERS)
    stats = optimizer.stats()
    assert stats["skipped"] == len(OUTLIERS)
    assert stats["spikes"] == len(OUTLIERS) - 1  # one overflow
    assert (stats["scale"], stats["backoffs"]) == (4.0, 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_follows_the_reference(mode):
    weights = [keras.Variable([1.0, 2.0])]
    optimizer = optimizer_for(weights)
    step = step_of(optimizer, weights, mode)
    reference = Reference(RULE.deviations, RULE.window, RULE.patience)
    expected = []
    some_are_high = {9: 1.3, 10: 2.0, 16: 1.0}
    for index, factor in enumerate(factors(outliers=some_are_high)):
        loss = factor * float(weights[0].numpy().sum())
        if reference.step(True, loss, factor * 2**0.5):
            expected.append(index)
        step(tf.constant(factor, "float32"))
    assert 0 < len(expected) < len(some_are_high)
    assert optimizer.stats()["spikes"] == len(expected)


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("mode", MODES)
def test_a_spike_leaves_moments_and_the_scaling_rule_as_they_were(mode, inner):
    weights = [keras.Variable([1.0, 2.0])]
    for rule in RULES:
        optimizer = optimizer_for(weights, inner, scaling=rule)
        step = step_of(optimizer, weights, mode)
        for factor in factors(8):
            step(tf.constant(factor, "float32"))
        kept = [*weights, *optimizer.inner_optimizer.variables]
        kept += [*optimizer._scaler.state.values()]
        before = values(kept)
        step(tf.constant(50.0))
        assert optimizer.stats()["spikes"] == 1
        assert_same(before, values(kept))


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_alone_can_be_a_spike(mode):
    weight = keras.Variable([1.0])
    optimizer = optimizer_for([weight])

    def step(offset):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(weight.value) + offset)
        optimizer.apply(tape.gradient(loss, [weight.value]))

    run = tf.function(step, jit_compile=mode == "jit") if mode != "eager" else step
    for offset in [0.0] * 7 + [1e3]:
        run(tf.constant(offset))
    assert optimizer.stats()["spikes"] == 1


@pytest.mark.parametrize("way", ["never scaled", "another function"])
@DIRECT
def test_without_a_loss_the_norm_is_judged(way):
    weights = [keras.Variable([1.0, 2.0])]
    optimizer = optimizer_for(weights)

    @tf.function
    def gradients(factor):
        loss = tf.reduce_sum(weights[0].value) * factor
        if way == "another function":
            return [optimizer.scale_loss(tf.ones(2) * factor)], loss
        return [tf.ones(2) * factor * 8.0], loss

    def step(factor):
        optimizer.apply(gradients(factor)[0], weights)

    assert skipped_steps(step, weights, factors(12)) == [9]
    assert np.isnan(optimizer._spikes._history.numpy()[0]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_window_of_micro_batches_whose_mean_is_a_spike_is_dropped(mode):
    weights = [keras.Variable([1.0, 2.0])]
    inner = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    optimizer = optimizer_for(weights, inner)
    step = step_of(optimizer, weights, mode)
    usual = factors(12, outliers={})  # six updates fill the rule's window
    skipped = skipped_steps(step, weights, [*usual, 50.0, 1.0, 1.0, 1.0])
    assert skipped == [0, 2, 4, 6, 8, 10, 12, 13, 14]
    assert int(optimizer.iterations) == 7
    stats = optimizer.stats()
    assert (stats["spikes"], stats["skipped"], stats["scale"]) == (1, 1, 8.0)


def test_sparse_and_missing_gradients():
    table, other = keras.Variable(np.ones((5, 2))), keras.Variable([1.0])
    optimizer = optimizer_for([table, other])

    @tf.function
    def step(factor):
        loss = optimizer.scale_loss(factor)
        rows = tf.IndexedSlices(tf.ones((2, 2)) * loss, tf.constant([1, 3]), (5, 2))
        optimizer.apply([rows, None])

    with pytest.warns(UserWarning, match="Gradients do not exist"):
        assert skipped_steps(step, [table], factors(12)) == [9]


def test_a_stateless_step_cannot_judge():
    weights = [keras.Variable([1.0, 2.0])]
    optimizer = optimizer_for(weights)
    own = [variable.value for variable in optimizer.variables]
    with pytest.raises(RuntimeError, match="cannot skip spikes"):
        optimizer.stateless_apply(own, [tf.ones(2)], [weights[0].value])


# What is saved.


def model_for(path=None):
    layers = [keras.Input((4,)), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    optimizer = keras_mp.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), 8.0, skip_spikes=RULE
    )
    model.compile(optimizer, "mse")
    return model


def data():
    x = np.random.default_rng(0).normal(size=(15, 4)).astype("float32")
    y = x.sum(1)
    y[12] += 1e3  # in the middle of the second window
    return x, y


def fit(model, x, y):
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)


@pytest.mark.long
def test_a_run_goes_on_from_the_middle_of_a_window(tmp_path):
    x, y = data()
    whole = model_for()
    start = whole.get_weights()
    fit(whole, x, y)
    assert whole.optimizer.stats()["spikes"] == 1
    for saved_after in (3, 9):
        first = model_for()
        first.set_weights(start)
        fit(first, x[:saved_after], y[:saved_after])
        first.save(tmp_path / "m.keras")
        resumed = keras_mp.load_model(tmp_path / "m.keras")
        assert resumed.optimizer.skip_spikes == RULE
        fit(resumed, x[saved_after:], y[saved_after:])
        assert resumed.optimizer.stats() == whole.optimizer.stats()
        assert_same(
            values(whole.optimizer.variables), values(resumed.optimizer.variables)
        )


@DIRECT
def test_checkpoints_of_optimizers_with_and_without():
    stores, built = [], []
    for rule in (None, RULE):
        weights = [keras.Variable([1.0, 2.0])]
        optimizer = optimizer_for(weights, "adam", skip_spikes=rule)
        step_of(optimizer, weights, "eager")(tf.constant(1.0))
        stores.append({})
        optimizer.save_own_variables(stores[-1])
        built.append(optimizer)
    assert stores[1].keys() - stores[0].keys() == {"spike_history", "spike_counts"}
    for optimizer, store in zip(built, stores[::-1], strict=True):
        optimizer.load_own_variables(store)
        assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("value", [True, RULE])
def test_config_round_trip(value):
    optimizer = keras_mp.LossScaleOptimizer("sgd", skip_spikes=value)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.skip_spikes == (keras_mp.SpikeRule() if value is True else RULE)


# Off.


@pytest.mark.parametrize("value", [None, False])
def test_off_there_is_nothing_of_it(value):
    optimizer = keras_mp.LossScaleOptimizer("sgd", skip_spikes=value)
    assert optimizer.skip_spikes is None
    assert "skip_spikes" not in optimizer.get_config()
    assert "spikes" not in optimizer.stats()
    assert not any("spike" in variable.name for variable in optimizer.variables)


@pytest.mark.internals
@pytest.mark.parametrize("inner", INNER)
def test_off_the_graph_of_a_step_has_nothing_of_it(inner, monkeypatch):
    def operations(rule):
        weights = [keras.Variable([1.0, 2.0]) for _ in range(3)]
        optimizer = optimizer_for(weights, inner, skip_spikes=rule)
        step = step_of(optimizer, weights, "graph")
        graph = step.get_concrete_function(tf.constant(1.0)).graph.as_graph_def()
        bodies = [graph.node, *(each.node_def for each in graph.library.function)]
        return collections.Counter(node.op for body in bodies for node in body)

    on = operations(RULE)
    monkeypatch.setattr(keras_mp.numerics, "norm", None)
    monkeypatch.setattr(keras_mp.optimizer.spikes, "Spikes", None)
    off = operations(None)
    assert off["Sqrt"] == on["Sqrt"] - 2  # of the norm, and of the deviations
    assert off.total() < on.total()
