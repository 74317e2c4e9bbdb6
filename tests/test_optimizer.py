"""`LossScaleOptimizer` against the inner optimizer alone and against Keras's class."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loss_scale import Dynamic as DynamicReference

import keras_mp
from keras_mp import scaling

RNG = np.random.default_rng(0)
DIRECT = pytest.mark.filterwarnings("ignore:LossScaleOptimizer.apply")


def variables():
    return [keras.Variable([1.0, 2.0, 3.0]), keras.Variable([[4.0], [5.0]])]


def gradients():
    return [RNG.normal(size=(3,)), RNG.normal(size=(2, 1))]


def scaled(optimizer, grads):
    """Return ``grads`` as a backward pass of the scaled loss would give them."""
    scale = optimizer.stats()["scale"]
    return [keras.ops.array(np.float32(g * scale)) for g in grads]


def values(variables):
    return [v.numpy().copy() for v in variables]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


# Construction.


@pytest.mark.parametrize(
    "positional",
    [
        (),
        (1024.0,),
        (1024.0, 100),
        (1024.0, 100, "scaler"),
        (1024,),
        (np.float32(1024.0),),
    ],
    ids=str,
)
def test_constructor_takes_keras_positional_arguments(positional):
    ours = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(), *positional)
    keras_own = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), *positional)
    assert ours.initial_scale == keras_own.initial_scale
    assert ours.dynamic_growth_steps == keras_own.dynamic_growth_steps
    if len(positional) == 3:
        assert ours.name == keras_own.name == "scaler"


@pytest.mark.parametrize("scale", [0.25, 2.0**30])
def test_initial_scale_beyond_the_usual_range_widens_it(scale):
    optimizer = keras_mp.LossScaleOptimizer("sgd", initial_scale=scale)
    assert optimizer.stats()["scale"] == scale


def test_inner_optimizer_by_name_and_config():
    by_name = keras_mp.LossScaleOptimizer("adam")
    assert isinstance(by_name.inner_optimizer, keras.optimizers.Adam)
    config = keras.optimizers.serialize(keras.optimizers.SGD(0.25))
    by_config = keras_mp.LossScaleOptimizer(config)
    assert float(by_config.inner_optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("sgd", scaling.StaticLossScale(2.0), 100), ValueError, "either a rule"),
        (("sgd", "loud"), ValueError, "not a loss-scale rule"),
        ((42,), TypeError, "needs a keras optimizer"),
        (("sgd", 0.0), ValueError, "above 0"),
        (("sgd", -1.0), ValueError, "above 0"),
        (("sgd", np.nan), ValueError, "above 0"),
        (("sgd", np.inf), ValueError, "above 0"),
        (("sgd", True), ValueError, "not a loss-scale rule"),
        (("sgd", 2.0, 0), ValueError, "growth_interval"),
        (("sgd", 2.0, 1.5), TypeError, "growth_interval"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        keras_mp.LossScaleOptimizer(*arguments)


@pytest.mark.parametrize(
    "wrapper", [keras_mp.LossScaleOptimizer, keras.optimizers.LossScaleOptimizer]
)
def test_wrapping_twice_is_refused(wrapper):
    wrapped = wrapper(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="scaled twice.*inner_optimizer"):
        keras_mp.LossScaleOptimizer(wrapped)


def test_inner_loss_scale_factor_is_not_dropped_silently():
    inner = keras.optimizers.SGD(loss_scale_factor=100.0)
    with pytest.warns(UserWarning, match=r"StaticLossScale\(100.0\)"):
        keras_mp.LossScaleOptimizer(inner)


# Stepping.

INNER = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.01),
    "clipnorm": lambda: keras.optimizers.SGD(0.1, clipnorm=0.5),
    "global_clipnorm": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5),
    "clipvalue": lambda: keras.optimizers.SGD(0.1, clipvalue=0.5),
    "ema": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    ),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@DIRECT
def test_clean_steps_equal_the_inner_optimizer_alone(name, mode):
    ours, alone = variables(), variables()
    optimizer = keras_mp.LossScaleOptimizer(INNER[name](), initial_scale=1024.0)
    bare = INNER[name]()
    optimizer.build(ours)
    bare.build(alone)
    apply = optimizer.apply
    if mode != "eager":
        apply = tf.function(optimizer.apply, jit_compile=mode == "jit")
    for _ in range(4):
        grads = gradients()
        apply(scaled(optimizer, grads))
        bare.apply([keras.ops.array(np.float32(g)) for g in grads])
    # A scale of 2**10 is exact. What differs is the compiler's own, and that our Adam
    # subtracts beta_2 from 1 in float32, 5e-5 of it, where Keras does not.
    exact = mode == "eager" and "adam" not in name
    tolerance = 0 if exact else 1e-6
    for a, b in zip(values(ours), values(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@DIRECT
def test_skipped_step_changes_no_weight_and_no_inner_state(name, bad):
    weights = variables()
    optimizer = keras_mp.LossScaleOptimizer(INNER[name]())
    optimizer.apply(scaled(optimizer, gradients()), weights)
    before = values(weights + optimizer.inner_optimizer.variables)
    grads = scaled(optimizer, gradients())
    grads[1] = keras.ops.array([[1.0], [bad]])
    optimizer.apply(grads)
    assert_same(before, values(weights + optimizer.inner_optimizer.variables))
    assert optimizer.stats()["skipped"] == 1


@DIRECT
def test_stats_count_every_event():
    weights = variables()
    rule = scaling.DynamicLossScale(initial_scale=8.0, growth_interval=2)
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    start = optimizer.stats()
    assert start == {
        "scale": 8.0,
        "steps": 0,
        "applied": 0,
        "skipped": 0,
        "consecutive_skipped": 0,
        "growths": 0,
        "backoffs": 0,
        "nonfinite_losses": 0,
    }
    for finite in [True, True, True, False, False]:
        grads = [np.full((3,), 1.0 if finite else np.nan), np.ones((2, 1))]
        optimizer.apply(scaled(optimizer, grads), weights)
    assert optimizer.stats() == {
        "scale": 4.0,
        "steps": 5,
        "applied": 3,
        "skipped": 2,
        "consecutive_skipped": 2,
        "growths": 1,
        "backoffs": 2,
        "nonfinite_losses": 0,
    }
    assert all(type(v) in (int, float) for v in optimizer.stats().values())


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.booleans(), min_size=1, max_size=30),
    interval=st.integers(1, 4),
    hysteresis=st.integers(1, 3),
)
@DIRECT
def test_scale_follows_the_reference(steps, interval, hysteresis):
    hyper = {
        "initial_scale": 64.0,
        "growth_interval": interval,
        "hysteresis": hysteresis,
        "min_scale": 2.0,
        "max_scale": 256.0,
    }
    reference = DynamicReference(**hyper)
    rule = scaling.DynamicLossScale(**hyper)
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    weight = keras.Variable([1.0])
    for finite in steps:
        optimizer.apply([keras.ops.array([1.0 if finite else np.inf])], [weight])
        reference.step(finite)
        assert optimizer.stats()["scale"] == reference.scale


@pytest.mark.parametrize("rule", ["static", "log_normal"])
@DIRECT
def test_other_rules_in_an_optimizer(rule):
    rules = {"static": scaling.StaticLossScale(128.0), "log_normal": "log_normal"}
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(1.0), rules[rule])
    weight = keras.Variable([1.0])
    optimizer.apply(scaled(optimizer, [np.array([0.25])]), [weight])
    np.testing.assert_array_equal(weight.numpy(), [0.75])
    # log-normal: 2 ** (16 - log2(0.25)), from the unscaled gradient.
    assert optimizer.stats()["scale"] == {"static": 128.0, "log_normal": 2.0**18}[rule]
    optimizer.apply([keras.ops.array([np.nan])], [weight])
    np.testing.assert_array_equal(weight.numpy(), [0.75])
    assert optimizer.stats()["skipped"] == 1


@pytest.mark.parametrize("mode", ["eager", "graph"])
@DIRECT
def test_overflow_at_the_floor_raises_if_asked(mode):
    rule = scaling.DynamicLossScale(initial_scale=2.0, on_floor="raise")
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    apply = tf.function(optimizer.apply) if mode == "graph" else optimizer.apply
    overflow = [keras.ops.array([np.inf])]
    apply(overflow)
    with pytest.raises(tf.errors.InvalidArgumentError, match="min_scale"):
        apply(overflow)
    np.testing.assert_array_equal(weight.numpy(), [1.0])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("bad", [None, np.inf])
@DIRECT
def test_sparse_gradients_stay_sparse(jit_compile, bad):
    seen = []

    class Spy(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            seen.append(type(gradient))
            super().update_step(gradient, variable, learning_rate)

    table = keras.Variable(np.ones((5, 2), "float32"))
    optimizer = keras_mp.LossScaleOptimizer(Spy(1.0), initial_scale=4.0)
    optimizer.build([table])

    @tf.function(jit_compile=jit_compile)
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table.value, [1, 3, 3]) * rows)
            loss = optimizer.scale_loss(loss)
        gradient = tape.gradient(loss, table.value)
        assert isinstance(gradient, tf.IndexedSlices)
        optimizer.apply([gradient])

    step(tf.constant(1.0 if bad is None else bad))
    assert seen and all(kind is tf.IndexedSlices for kind in seen)
    expected = np.ones((5, 2))
    if bad is None:
        expected[[1, 3]] = [[0.0, 0.0], [-1.0, -1.0]]
    np.testing.assert_array_equal(table.numpy(), expected)


@DIRECT
def test_missing_gradients_are_left_to_the_inner_optimizer():
    weights = variables()
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, scaled(optimizer, [np.ones((2, 1))])[0]], weights)
    np.testing.assert_array_equal(weights[0].numpy(), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(weights[1].numpy(), [[3.0], [4.0]])
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None, None])


# The inner optimizer through the wrapper.


def test_settings_reach_the_inner_optimizer_both_ways():
    inner = keras.optimizers.AdamW(0.1, weight_decay=0.25, clipnorm=2.0)
    optimizer = keras_mp.LossScaleOptimizer(inner)
    assert (optimizer.weight_decay, optimizer.clipnorm) == (0.25, 2.0)
    assert (optimizer.beta_1, optimizer.epsilon) == (inner.beta_1, inner.epsilon)
    optimizer.weight_decay = 0.5
    optimizer.beta_1 = 0.75
    optimizer.clipnorm = None
    optimizer.learning_rate = 0.5
    assert (inner.weight_decay, inner.beta_1, inner.clipnorm) == (0.5, 0.75, None)
    assert float(inner.learning_rate) == 0.5
    with pytest.raises(AttributeError, match="'Adamw?W?' object has no attribute"):
        _ = optimizer.no_such_setting


@DIRECT
def test_excluded_variables_are_not_decayed():
    kernel = keras.Variable([1.0], name="kernel")
    bias = keras.Variable([1.0], name="bias")
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(0.5, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([keras.ops.array([0.0])] * 2, [kernel, bias])
    np.testing.assert_array_equal(kernel.numpy(), [0.75])  # 1 - 0.5 * 0.5
    np.testing.assert_array_equal(bias.numpy(), [1.0])


@DIRECT
def test_wrapping_a_built_optimizer_keeps_its_moments():
    weights = variables()
    inner = keras.optimizers.Adam(0.1)
    inner.apply([keras.ops.array(np.float32(g)) for g in gradients()], weights)
    before = values(inner.variables)
    optimizer = keras_mp.LossScaleOptimizer(inner)
    assert optimizer.built
    optimizer.build(weights)
    assert_same(before, values(inner.variables))
    optimizer.apply(scaled(optimizer, gradients()))
    assert int(optimizer.iterations) == 2


@DIRECT
def test_keras_names_for_the_rule_stay_settable():
    optimizer = keras_mp.LossScaleOptimizer("sgd")
    optimizer.initial_scale = 4.0
    optimizer.dynamic_growth_steps = 1
    assert float(optimizer.scale_loss(1.0)) == 4.0
    optimizer.apply(scaled(optimizer, [np.ones(1)]), [keras.Variable([1.0])])
    assert float(optimizer.dynamic_scale) == 8.0
    assert int(optimizer.step_counter) == 0


def test_setting_one_thing_keeps_the_rest_of_the_rule():
    rule = scaling.DynamicLossScale(initial_scale=8.0, growth_factor=4.0)
    optimizer = keras_mp.LossScaleOptimizer("sgd", rule)
    optimizer.dynamic_growth_steps = 5
    assert optimizer.scaling == scaling.DynamicLossScale(
        initial_scale=8.0, growth_factor=4.0, growth_interval=5
    )
    fixed = keras_mp.LossScaleOptimizer("sgd", scaling.StaticLossScale(2.0))
    with pytest.raises(AttributeError, match="no `initial_scale` to set"):
        fixed.initial_scale = 4.0
    assert fixed.scaling == scaling.StaticLossScale(2.0)


# Custom loops.


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("way", ["scale_loss", "old names", "old names, clipped"])
def test_custom_loop(mode, way):
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=16.0
    )
    optimizer.build([weight])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight.value * 0.5)
            if way == "scale_loss":
                loss = optimizer.scale_loss(loss)
            else:
                loss = optimizer.get_scaled_loss(loss)
        grads = tape.gradient(loss, [weight.value])
        if way != "scale_loss":
            grads = optimizer.get_unscaled_gradients(grads)
        if way == "old names, clipped":
            grads, _ = tf.clip_by_global_norm(grads, 0.25)
        optimizer.apply_gradients(zip(grads, [weight], strict=True))

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    step()
    step()
    expected = 1.5 if way == "old names, clipped" else 1.0
    np.testing.assert_array_equal(weight.numpy(), [expected])
    assert optimizer.stats()["applied"] == 2


def test_unscaled_gradients_that_were_only_logged_do_not_confuse_the_next_step():
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=16.0
    )
    optimizer.get_unscaled_gradients([keras.ops.array([16.0])])
    optimizer.scale_loss(1.0)
    optimizer.apply([keras.ops.array([16.0])], [weight])
    np.testing.assert_array_equal(weight.numpy(), [1.0])


def test_forgotten_scale_loss_is_reported_once():
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer("sgd")
    with pytest.warns(UserWarning, match=r"without scale_loss\(\)") as caught:
        optimizer.apply([keras.ops.array([1.0])], [weight])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.apply([keras.ops.array([1.0])], [weight])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scaled_loss_is_at_least_float32(dtype):
    optimizer = keras_mp.LossScaleOptimizer("sgd", initial_scale=2.0**20)
    loss = optimizer.scale_loss(keras.ops.array(3.0, dtype=dtype))
    assert float(loss) == 3 * 2.0**20
    assert loss.dtype == ("float64" if dtype == "float64" else "float32")


# Saving.


def trained(cls, inner, **kwargs):
    optimizer = cls(inner, **kwargs)
    weights = variables()
    scale = 8.0
    for finite in (True, True, False):
        grads = [np.full((3,), scale if finite else np.inf), np.ones((2, 1))]
        optimizer.apply([keras.ops.array(np.float32(g)) for g in grads], weights)
    return optimizer


def stored(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def fresh(cls, inner, **kwargs):
    optimizer = cls(inner, **kwargs)
    optimizer.build(variables())
    return optimizer


RULES = [
    scaling.DynamicLossScale(
        initial_scale=8.0, hysteresis=2, hysteresis_refill="clean"
    ),
    scaling.StaticLossScale(8.0),
    scaling.LogNormalLossScale(initial_scale=8.0),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@DIRECT
def test_state_survives_saving(rule):
    optimizer = trained(keras_mp.LossScaleOptimizer, "adam", scaling=rule)
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam", scaling=rule)
    loaded.load_own_variables(stored(optimizer))
    assert loaded.stats() == optimizer.stats()
    assert_same(values(loaded.variables), values(optimizer.variables))


@DIRECT
def test_checkpoint_from_before_a_counter_was_there():
    optimizer = trained(keras_mp.LossScaleOptimizer, "adam")
    optimizer.count_loss(True)
    store = stored(optimizer)
    del store["nonfinite_losses"]
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam")
    loaded.load_own_variables(store)
    assert optimizer.stats()["nonfinite_losses"] == 1
    assert loaded.stats() == optimizer.stats() | {"nonfinite_losses": 0}


@DIRECT
def test_keras_checkpoint_brings_moments_and_scale():
    kwargs = {"initial_scale": 8.0, "dynamic_growth_steps": 7}
    keras_own = trained(
        keras.optimizers.LossScaleOptimizer, keras.optimizers.Adam(), **kwargs
    )
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam", **kwargs)
    loaded.load_own_variables(stored(keras_own))
    assert float(loaded.dynamic_scale) == float(keras_own.dynamic_scale) == 4.0
    assert int(loaded.step_counter) == int(keras_own.step_counter)
    assert_same(
        values(loaded.inner_optimizer.variables),
        values(keras_own.inner_optimizer.variables),
    )


@pytest.mark.parametrize(("saved", "expected"), [(0.0, 1.0), (np.inf, 2.0**24)])
@DIRECT
def test_keras_checkpoint_with_a_ruined_scale_is_mended(saved, expected):
    keras_own = trained(keras.optimizers.LossScaleOptimizer, keras.optimizers.Adam())
    keras_own.dynamic_scale.assign(saved)
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam")
    loaded.load_own_variables(stored(keras_own))
    assert loaded.stats()["scale"] == expected


def test_bare_optimizer_checkpoint_brings_its_moments():
    bare = keras.optimizers.Adam()
    bare.apply([keras.ops.array(np.float32(g)) for g in gradients()], variables())
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam", initial_scale=8.0)
    loaded.load_own_variables(stored(bare))
    assert_same(values(loaded.inner_optimizer.variables), values(bare.variables))
    assert loaded.stats()["scale"] == 8.0


def test_foreign_checkpoint_is_skipped_with_a_warning():
    loaded = fresh(keras_mp.LossScaleOptimizer, "adam")
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        loaded.load_own_variables({"0": np.zeros(1)})


@pytest.mark.parametrize("way", ["keras", "ours"])
@DIRECT
def test_model_file_of_either_class_resumes(way, tmp_path):
    cls = {
        "keras": keras.optimizers.LossScaleOptimizer,
        "ours": keras_mp.LossScaleOptimizer,
    }[way]
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = cls(keras.optimizers.Adam(0.1), initial_scale=8.0)
    model.compile(optimizer, loss="mse")
    model.fit(x, y, epochs=3, batch_size=8, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    resumed = keras.models.clone_model(model)
    keras_mp.compile(resumed, keras.optimizers.Adam(0.1), "mse", scaling="dynamic")
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "m.weights.h5")
    assert int(resumed.optimizer.iterations) == 3
    assert float(resumed.optimizer.dynamic_scale) == 8.0
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    resumed.fit(x, y, epochs=1, batch_size=8, verbose=0)
    # The same arithmetic in two graphs: within one rounding of float32.
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_config_round_trip(rule):
    optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(0.25), rule)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is keras_mp.LossScaleOptimizer
    assert again.scaling == rule
    assert float(again.inner_optimizer.learning_rate) == 0.25


def test_config_with_keras_settings_loads_into_keras():
    optimizer = keras_mp.LossScaleOptimizer("sgd", 8.0, 5)
    config = optimizer.get_config()
    keras_own = keras.optimizers.LossScaleOptimizer.from_config(config)
    assert keras_own.initial_scale == 8.0
    assert keras_own.dynamic_growth_steps == 5


@pytest.mark.parametrize("traced", ["scaling", "unscaling"])
def test_apply_outside_the_function_that_made_the_gradients(traced):
    """What is traced runs once in Python, `apply` every time."""
    weight = keras.Variable([2.0])
    optimizer = keras_mp.LossScaleOptimizer(
        keras.optimizers.SGD(0.125), initial_scale=16.0
    )

    @tf.function
    def gradients_of_square():
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(weight.value**2))
        grads = tape.gradient(loss, [weight.value])
        if traced == "unscaling":
            grads = optimizer.get_unscaled_gradients(grads)
        return grads

    for expected in (1.5, 1.125, 0.84375):  # w - 0.125 * 2 w
        optimizer.apply(gradients_of_square(), [weight])
        np.testing.assert_array_equal(weight.numpy(), [expected])


@DIRECT
def test_variables_of_a_subclass_are_saved():
    class Counting(keras_mp.LossScaleOptimizer):
        def __init__(self, inner_optimizer):
            super().__init__(inner_optimizer)
            self.calls = self.add_variable((), name="calls")

    optimizer, loaded = (fresh(Counting, "sgd") for _ in range(2))
    optimizer.calls.assign(7.0)
    loaded.load_own_variables(stored(optimizer))
    assert float(loaded.calls) == 7.0
