"""Windows of micro-batches, on one device; across replicas in the support matrix."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_mp

SCALE = 8.0
RNG = np.random.default_rng(0)
START = RNG.normal(size=(5, 3)).astype("float32")
GRADIENTS = RNG.normal(size=(4, 2, 5, 3)).astype("float32")  # updates, micro-batches

INNER = {
    "sgd": lambda **k: keras.optimizers.SGD(0.1, momentum=0.9, **k),
    "adam": lambda **k: keras.optimizers.Adam(0.1, clipnorm=0.5, **k),
    "adamw": lambda **k: keras.optimizers.AdamW(0.1, weight_decay=0.1, **k),
    "schedule": lambda **k: keras.optimizers.SGD(halving_schedule(), **k),
    "ema": lambda **k: keras.optimizers.Adam(
        0.1, use_ema=True, ema_overwrite_frequency=2, **k
    ),
}


def halving_schedule():
    return keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)


def optimizer_on(inner, **kwargs):
    """Return a variable and an optimizer for it, whose inner one is ``inner``."""
    weight = keras.Variable(START)
    optimizer = keras_mp.LossScaleOptimizer(inner, initial_scale=SCALE, **kwargs)
    optimizer.build([weight])
    optimizer.scale_loss(1.0)  # so that the gradients below are taken as scaled
    return weight, optimizer


def accumulating(name="sgd", steps=2, **kwargs):
    return optimizer_on(INNER[name](gradient_accumulation_steps=steps), **kwargs)


def give(optimizer, weight, gradient):
    """Apply ``gradient`` as a backward pass under the present scale would give it."""
    scale = ops.convert_to_numpy(optimizer.dynamic_scale)
    optimizer.apply([ops.convert_to_tensor(gradient * scale)], [weight])


def state_of(weight, optimizer):
    values = [weight, *optimizer.inner_optimizer.variables]
    return [np.array(ops.convert_to_numpy(value)) for value in values]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("name", INNER)
def test_a_window_is_one_batch_of_its_size(name, compiled):
    whole, one = optimizer_on(INNER[name]())
    parts, two = accumulating(name)

    def step(gradient):
        two.apply([gradient], [parts])

    step = tf.function(step) if compiled else step
    for micro_batches in GRADIENTS:
        one.apply([ops.convert_to_tensor(micro_batches.mean(0) * SCALE)], [whole])
        for gradient in micro_batches:
            step(ops.convert_to_tensor(gradient * SCALE))
    # The mean is summed in another order: a rounding or two of float32.
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)
    assert int(two.iterations) == int(one.iterations) == len(GRADIENTS)


def test_weights_wait_for_the_window():
    weight, optimizer = accumulating(steps=3)
    for gradient in GRADIENTS[0]:
        give(optimizer, weight, gradient)
    np.testing.assert_array_equal(weight, START)
    assert int(optimizer.iterations) == 0


@pytest.mark.filterwarnings("ignore:LossScaleOptimizer")
@pytest.mark.parametrize("bad_at", [0, 1], ids=["first", "last"])
def test_an_overflowing_micro_batch_is_dropped_and_replaced_by_the_next(bad_at):
    clean, undisturbed = accumulating("adam")
    weight, optimizer = accumulating("adam")
    for index, gradient in enumerate(GRADIENTS[0]):
        if index == bad_at:
            before = state_of(weight, optimizer)
            give(optimizer, weight, np.full_like(gradient, np.inf))
            after = state_of(weight, optimizer)
            assert all(map(np.array_equal, before, after))
        give(optimizer, weight, gradient)
        give(undisturbed, clean, gradient)
    # Exactly: the scale that halved in between is a power of two.
    np.testing.assert_array_equal(weight, clean)
    stats = optimizer.stats()
    assert (stats["applied"], stats["skipped"], stats["scale"]) == (2, 1, SCALE / 2)


def test_a_scale_that_grows_inside_a_window_does_not_show():
    weight, optimizer = accumulating(dynamic_growth_steps=1)
    clean, undisturbed = accumulating()
    for gradient in GRADIENTS.reshape(-1, 5, 3):
        give(optimizer, weight, gradient)
        give(undisturbed, clean, gradient)
    assert optimizer.stats()["growths"] == GRADIENTS.shape[0] * 2
    np.testing.assert_array_equal(weight, clean)


def test_gradients_unscaled_by_the_loop_are_taken_as_they_are():
    whole, one = optimizer_on(INNER["sgd"]())
    weight, optimizer = accumulating()
    for gradient in GRADIENTS[0]:
        optimizer.scale_loss(1.0)
        scaled = [ops.convert_to_tensor(gradient * SCALE)]
        optimizer.apply(optimizer.get_unscaled_gradients(scaled), [weight])
    give(one, whole, GRADIENTS[0].mean(0))
    np.testing.assert_allclose(weight, whole, rtol=1e-6)  # another order of summing


def test_schedules_count_updates_and_learning_rate_says_so():
    weight, optimizer = accumulating("schedule")
    rates = []
    for gradient in GRADIENTS[:2].reshape(-1, 5, 3):
        rates.append(float(optimizer.learning_rate))
        give(optimizer, weight, gradient)
    assert rates == [1.0, 1.0, 0.5, 0.5]


def test_learning_rate_without_a_schedule_reads_and_writes_through():
    _, optimizer = accumulating()
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25
    assert float(optimizer.inner_optimizer.learning_rate) == 0.25


def test_a_window_is_resumed_in_its_middle():
    weight, optimizer = accumulating("adam")
    straight, undisturbed = accumulating("adam")
    give(optimizer, weight, GRADIENTS[0][0])
    give(undisturbed, straight, GRADIENTS[0][0])
    store = {}
    optimizer.save_own_variables(store)
    resumed, loaded = accumulating("adam")
    loaded.load_own_variables(store)
    give(loaded, resumed, GRADIENTS[0][1])
    give(undisturbed, straight, GRADIENTS[0][1])
    np.testing.assert_array_equal(resumed, straight)


def test_a_window_that_keras_began_is_finished():
    inner = INNER["sgd"](gradient_accumulation_steps=2)
    keras_weight = keras.Variable(START)
    theirs = keras.optimizers.LossScaleOptimizer(inner, initial_scale=SCALE)
    theirs.apply([ops.convert_to_tensor(GRADIENTS[0][0] * SCALE)], [keras_weight])
    store = {}
    theirs.save_own_variables(store)
    weight, optimizer = accumulating()
    optimizer.load_own_variables(store)
    give(optimizer, weight, GRADIENTS[0][1])
    theirs.apply([ops.convert_to_tensor(GRADIENTS[0][1] * SCALE)], [keras_weight])
    np.testing.assert_allclose(weight, keras_weight, rtol=1e-6)  # scaled sums


@pytest.mark.filterwarnings("ignore:(?s).*Gradients do not exist")
def test_variables_without_a_gradient_stay():
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    used, unused = keras.Variable(START), keras.Variable(START)
    optimizer = keras_mp.LossScaleOptimizer(inner, initial_scale=SCALE)
    optimizer.scale_loss(1.0)
    for gradient in GRADIENTS[0]:
        scaled = ops.convert_to_tensor(gradient * SCALE)
        optimizer.apply([scaled, None], [used, unused])
    np.testing.assert_array_equal(unused, START)
    expected = START - np.float32(0.1) * GRADIENTS[0].mean(0)
    np.testing.assert_allclose(used, expected, rtol=1e-6)  # float32 roundings


def test_sparse_gradients_are_summed():
    weight, optimizer = accumulating()
    rows = [[0, 2], [2, 2]]
    dense = np.zeros((2, 5, 3), "float32")
    for micro_batch, indices in enumerate(rows):
        values = GRADIENTS[0][micro_batch][:2]
        np.add.at(dense[micro_batch], indices, values)
        sparse = tf.IndexedSlices(values * SCALE, indices, START.shape)
        optimizer.apply([sparse], [weight])
    whole, one = optimizer_on(INNER["sgd"]())
    give(one, whole, dense.mean(0))
    np.testing.assert_allclose(weight, whole, rtol=1e-6)  # another order of summing


def test_values_that_overwrite_their_variable_keep_the_largest():
    amax, weight = keras.Variable([1.0], name="amax"), keras.Variable([1.0])
    amax.overwrite_with_gradient = True
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    optimizer = keras_mp.LossScaleOptimizer(inner, initial_scale=SCALE)
    optimizer.scale_loss(1.0)
    for value in (5.0, 3.0):
        optimizer.apply([ops.array([value]), ops.array([SCALE])], [amax, weight])
    assert amax.numpy() == [5.0]
    np.testing.assert_allclose(weight, [0.9], rtol=1e-6)  # float32 of 0.9


def test_log_normal_scaling_sees_every_micro_batch():
    rule = keras_mp.scaling.LogNormalLossScale()
    weight = keras.Variable(START)
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    optimizer = keras_mp.LossScaleOptimizer(inner, scaling=rule)
    optimizer.scale_loss(1.0)
    optimizer.build([weight])
    before = optimizer.stats()["scale"]
    give(optimizer, weight, GRADIENTS[0][0])
    assert optimizer.stats()["scale"] != before


def test_accumulating_after_building_without_is_refused():
    weight, optimizer = optimizer_on(keras.optimizers.SGD())
    optimizer.gradient_accumulation_steps = 2
    with pytest.raises(ValueError, match="constructor"):
        give(optimizer, weight, GRADIENTS[0][0])
