"""Which variables overflowed, counted if asked for, at no cost to good steps."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.updates import DIRECT, assert_same, values

import keras_mp

MODES = ["eager", "graph", "jit"]
SIZES = {"table": (4, 2), "kernel": (3, 2), "bias": (2,)}


def variables():
    return [keras.Variable(np.ones(size), name=name) for name, size in SIZES.items()]


def optimizer_for(weights, inner="sgd", *, tracks=True, **how):
    optimizer = keras_mp.LossScaleOptimizer(inner, initial_scale=8.0, **how)
    if tracks:
        optimizer.track_overflows()
    optimizer.build(weights)
    return optimizer


def compiled(function, mode):
    return (
        tf.function(function, jit_compile=mode == "jit")
        if mode != "eager"
        else function
    )


def gradients(*bad, value=np.inf):
    """Return gradients of 1, in which those of the variables named ``bad`` are not."""
    parts = {name: np.ones(size, "float32") for name, size in SIZES.items()}
    for name in bad:
        parts[name].flat[1] = value
    return list(map(tf.constant, parts.values()))


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("mode", MODES)
@DIRECT
def test_each_variable_counts_its_own_overflows(mode, inner):
    optimizer = optimizer_for(variables(), inner)
    apply = compiled(optimizer.apply, mode)
    apply(gradients())
    assert optimizer.overflows_by_variable() == {}
    apply(gradients("bias"))
    apply(gradients("kernel", "bias", value=np.nan))
    assert optimizer.overflows_by_variable() == {"kernel": [1], "bias": [2]}
    assert optimizer.stats()["skipped"] == 2


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("jit_compile", [False, True])
@DIRECT
def test_many_small_variables_updated_without_a_branch(jit_compile):
    """Plain SGD needs none; counting has one of its own, which takes in stacks."""
    weights = [keras.Variable(np.ones(3), name=f"w{i}") for i in range(120)]
    optimizer = optimizer_for(weights)
    good, bad = tf.ones(3), tf.constant([1.0, np.nan, 1.0])
    apply = tf.function(optimizer.apply, jit_compile=jit_compile)
    apply([good] * 120)
    apply([bad if i in (7, 119) else good for i in range(120)])
    assert optimizer.overflows_by_variable() == {"w7": [1], "w119": [1]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@DIRECT
def test_missing_and_sparse_gradients(mode):
    optimizer = optimizer_for(variables())

    def apply(rows):
        table = tf.IndexedSlices(rows, tf.constant([0, 3, 3]), (4, 2))
        optimizer.apply([table, None, tf.ones(2)])

    apply = compiled(apply, mode)
    apply(tf.ones((3, 2)))
    apply(tf.constant([[1.0, 1.0], [1.0, np.inf], [1.0, 1.0]]))
    assert optimizer.overflows_by_variable() == {"table": [1]}


@pytest.mark.parametrize("mode", MODES)
@DIRECT
def test_dropped_micro_batches_and_last_ones_of_a_window_count(mode):
    inner = keras.optimizers.SGD(gradient_accumulation_steps=2)
    optimizer = optimizer_for(variables(), inner)
    apply = compiled(optimizer.apply, mode)
    apply(gradients("kernel"))  # the first of a window
    apply(gradients())
    apply(gradients("bias"))  # the last one
    apply(gradients())
    assert optimizer.overflows_by_variable() == {"kernel": [1], "bias": [1]}
    assert int(optimizer.iterations) == 1


@DIRECT
def test_gradients_of_some_variables_in_another_order():
    weights = table, kernel, bias = variables()
    optimizer = optimizer_for(weights)
    of_table, of_kernel, of_bias = gradients("bias", "table")
    optimizer.apply([of_bias, of_table], [bias, table])
    assert optimizer.overflows_by_variable() == {"table": [1], "bias": [1]}


@pytest.mark.parametrize("when", ["before build", "after build"])
@DIRECT
def test_tracking_starts_before_or_after_the_optimizer_is_built(when):
    weights = variables()
    optimizer = keras_mp.LossScaleOptimizer("adam")
    if when == "after build":
        optimizer.build(weights)
    optimizer.track_overflows()
    optimizer.track_overflows()
    apply = tf.function(lambda: optimizer.apply(gradients("kernel"), weights))
    apply()
    optimizer.track_overflows()
    apply()
    assert optimizer.overflows_by_variable() == {"kernel": [2]}


@DIRECT
def test_variables_of_one_path_are_added_up():
    optimizer = optimizer_for([keras.Variable([1.0], name="w") for _ in range(2)])
    optimizer.apply([tf.constant([np.inf])] * 2)
    assert optimizer.overflows_by_variable() == {"w": [2]}


@DIRECT
def test_counts_of_any_rule():
    weights = variables()
    optimizer = keras_mp.LossScaleOptimizer("sgd", "log_normal")
    optimizer.track_overflows()
    optimizer.apply(gradients("kernel"), weights)
    assert optimizer.overflows_by_variable() == {"kernel": [1]}


@pytest.mark.long
@pytest.mark.parametrize("how", [{}, {"jit_compile": True}, {"steps_per_execution": 4}])
def test_fit_names_the_layer(how):
    model = model_for(**how)
    model.optimizer.track_overflows()
    x, y = np.ones((32, 2), "float32"), np.ones((32, 1), "float32")
    x[4:8] = 6e4  # the second batch of eight
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    stats = model.optimizer.stats()
    assert (stats["applied"], stats["skipped"]) == (7, 1)
    assert model.optimizer.overflows_by_variable() == {"net/first/kernel": [1]}


def model_for(**how):
    """Return a model whose first kernel overflows for rows of 60,000.

    Their gradient is 60,000 times 0.5 on each of four rows; float16 ends at 65,504.
    """
    small = keras.initializers.Constant(1e-3)
    layers = [
        keras.layers.Dense(2, name="first", kernel_initializer="identity"),
        keras.layers.Dense(1, name="last", kernel_initializer=small),
    ]
    model = keras.Sequential([keras.Input((2,)), *layers], name="net")
    rule = keras_mp.scaling.DynamicLossScale(initial_scale=8.0)
    keras_mp.compile(model, "adam", "mse", policy="mixed_float16", scaling=rule, **how)
    return model


# What tracking leaves alone.


@pytest.mark.parametrize("inner", ["sgd", "adam", "accumulation"])
@pytest.mark.parametrize("mode", MODES)
@DIRECT
def test_good_steps_change_the_same_bits_with_and_without(mode, inner):
    ends = []
    for tracks in (False, True):
        weights = variables()
        own = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)
        optimizer = optimizer_for(
            weights, own if inner == "accumulation" else inner, tracks=tracks
        )
        apply = compiled(optimizer.apply, mode)
        random = np.random.default_rng(0)
        for bad in ((), (), ("kernel",), ()):
            grads = gradients(*bad)
            apply([g * tf.cast(random.normal(size=g.shape), "float32") for g in grads])
        ends.append(values(weights + optimizer.variables))
    assert_same(*ends)


@DIRECT
def test_nothing_of_it_is_saved():
    stores = []
    for tracks in (False, True):
        optimizer = optimizer_for(variables(), "adam", tracks=tracks)
        optimizer.apply(gradients("kernel"))
        store = {}
        optimizer.save_own_variables(store)
        stores.append((store.keys(), optimizer.get_config().keys()))
    assert stores[0] == stores[1]


def operations(inner, tracks, *, inside):
    """Return how many operations of each type a step has."""
    optimizer = optimizer_for(variables(), inner, tracks=tracks)
    step = tf.function(optimizer.apply).get_concrete_function(gradients())
    graph = step.graph.as_graph_def()
    nodes = list(graph.node)
    if inside:
        nodes += [node for each in graph.library.function for node in each.node_def]
    return collections.Counter(node.op for node in nodes)


@pytest.mark.internals
@pytest.mark.parametrize("inner", ["adam", "rmsprop"])
@DIRECT
def test_a_good_step_runs_the_same_operations(inner):
    """All that is added is in the branch of a bad step, which the counts enter."""
    without, tracking = (operations(inner, t, inside=False) for t in (False, True))
    assert tracking == without + collections.Counter(Placeholder=1)
    more = operations(inner, True, inside=True) - operations(inner, False, inside=True)
    assert more["IsFinite"] == len(SIZES)


@pytest.mark.internals
@DIRECT
def test_a_step_that_does_not_track_never_looks(monkeypatch):
    def fail(*args):
        raise AssertionError("a step without tracking came here")

    monkeypatch.setattr(keras_mp.numerics, "each_finite", fail)
    monkeypatch.setattr(
        keras_mp.optimizer.overflows.Overflows, "whose", lambda *a: fail
    )
    before = operations("adam", False, inside=True)
    assert before == operations("adam", False, inside=True)
    assert before["IsFinite"] == 1  # of the verdict


# Where it cannot, it says so.


def test_counts_that_nobody_asked_for():
    with pytest.raises(RuntimeError, match=r"track_overflows\(\)"):
        keras_mp.LossScaleOptimizer("sgd").overflows_by_variable()


@DIRECT
def test_a_step_that_was_traced_before():
    optimizer = optimizer_for(variables(), tracks=False)
    tf.function(optimizer.apply)(gradients("bias"))
    optimizer.track_overflows()
    with pytest.raises(RuntimeError, match="traced before"):
        optimizer.overflows_by_variable()
    tf.function(optimizer.apply)(gradients("bias"))
    assert optimizer.overflows_by_variable() == {"bias": [1]}


@pytest.mark.long
def test_fit_counts_after_its_step_is_traced_again():
    model = model_for()
    x, y = np.full((4, 2), 6e4, "float32"), np.ones((4, 1), "float32")
    model.fit(x, y, verbose=0)
    model.optimizer.track_overflows()
    model.make_train_function(force=True)
    model.optimizer.dynamic_scale.assign(8.0)
    model.fit(x, y, verbose=0)
    assert list(model.optimizer.overflows_by_variable()) == ["net/first/kernel"]


def test_a_stateless_step_cannot_count():
    weights = variables()
    optimizer = optimizer_for(weights)
    with pytest.raises(RuntimeError, match="stateless_apply"):
        optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            gradients(),
            [w.value for w in weights],
        )
