"""Steps across replicas, each case in a process of its own with logical CPUs.

Collective keys leak from one strategy to the next within a process, and a wrong
collective hangs; hence the processes and the time-out.
"""

import contextlib
import functools
import itertools
import json
import sys

import keras
import numpy as np
import pytest
from support.graphs import needed_for
from support.processes import mirrored, run_alone, split_cpu

pytestmark = pytest.mark.long

CLIPPINGS = ["none", "clipnorm", "global_clipnorm", "clipvalue"]
# Others are Keras's update alone behind Keras's clipping, and take turns with it.
CLIPPED_IN_ALL_WAYS = {"SGD", "Adam", "AdamW", "MultiOptimizer"}
# Muon of Keras 3.12 fails under a strategy without loss scaling too: its update asks
# TensorFlow's variables for a path.
BROKEN_IN_KERAS = {"Muon"} if keras.__version__.startswith("3.12.") else set()
# Keras's update of one number at a time, and by norms; and one that is ours.
LARGE_WITH = {"Adam", "Lamb", "RMSprop"}


def run_case(case, replicas, *arguments):
    """Run ``case`` on ``replicas`` logical CPUs and return its results."""
    return run_alone(__file__, ":".join([case, *arguments]), str(replicas))


def optimizer_names():
    """Return every optimizer class of Keras that can be an inner optimizer."""
    base = keras.optimizers.Optimizer
    classes = vars(keras.optimizers).items()
    found = {n for n, c in classes if isinstance(c, type) and issubclass(c, base)}
    return sorted(found - {"Optimizer", "LossScaleOptimizer"} - BROKEN_IN_KERAS)


def pairs():
    """Return pairs of an optimizer and a way of clipping, of which one is none."""
    ways = itertools.cycle(CLIPPINGS[1:])
    return [
        (name, clipping)
        for name in optimizer_names()
        for clipping in (
            CLIPPINGS if name in CLIPPED_IN_ALL_WAYS else ("none", next(ways))
        )
    ]


@pytest.fixture(scope="module")
def trained():
    """Return the weights that each optimizer ends with, on one replica and on two."""
    return {replicas: run_case("optimizers", replicas) for replicas in (1, 2)}


@pytest.mark.parametrize(("name", "clipping"), pairs())
def test_two_replicas_train_as_one(trained, name, clipping):
    one, two = (np.array(trained[n][f"{name} {clipping}"]) for n in (1, 2))
    # The batch is summed in another order: a few roundings of float32.
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", optimizer_names())
def test_clipping_changed_what_was_trained(trained, name):
    ends = [trained[2][f"{each} {way}"] for each, way in pairs() if each == name]
    assert len({tuple(end) for end in ends}) == len(ends) > 1


def test_large_variables_train_as_on_one_replica():
    one, two = (run_case("large", replicas) for replicas in (1, 2))
    assert one.keys() == two.keys() == LARGE_WITH
    for name in LARGE_WITH:
        # As above; of 101 x 100 numbers, from which the first row is looked at.
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6)
    assert len({tuple(end) for end in one.values()}) == len(LARGE_WITH)


@pytest.fixture(scope="module")
def steps():
    """Return what single steps on two replicas did, by case."""
    return run_case("steps", 2)


def test_gradients_cross_the_network_once(steps):
    # One all-reduce of both gradients, (4, 3) and (3,), in float32; no other one.
    assert steps["plain"]["traffic"] == [["float32", 15]]


def test_accumulated_gradients_cross_the_network_once_per_window(steps):
    # The verdicts in between are at hand, on one machine.
    assert steps["accumulation"]["traffic"] == [["float32", 15]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_reduce_dtype_halves_the_traffic_and_little_else(steps, dtype):
    assert steps[dtype]["traffic"] == [[dtype, 15]]
    # Two roundings, of each part and of the sum, to 11 or 8 bits; SGD is linear.
    precision = {"float16": 2**-10, "bfloat16": 2**-7}[dtype]
    plain, narrow = (np.array(steps[n]["update"]) for n in ("plain", dtype))
    np.testing.assert_allclose(narrow, plain, rtol=0, atol=precision * abs(plain).max())
    assert not np.array_equal(narrow, plain)


def test_sums_in_float16_do_not_overflow_where_the_parts_fit(steps):
    # 60,000 on each of two replicas; float16 ends at 65,504.
    assert steps["large parts"]["stats"]["skipped"] == 0
    np.testing.assert_allclose(steps["large parts"]["update"], -120000.0, rtol=2**-10)


def test_a_part_that_does_not_fit_float16_is_an_overflow(steps):
    assert steps["too large a part"]["update"] == [0.0] * 15
    assert steps["too large a part"]["overflows"] == [0, 0]  # it fitted float32


def test_gradients_unscaled_by_the_loop_survive_a_float16_all_reduce(steps):
    # 1e-8 is 0 in float16, 1e-8 times the scale is not.
    np.testing.assert_allclose(steps["small parts"]["update"], -2e-8, rtol=2**-10)


def test_sparse_gradients_are_narrowed_where_tensorflow_can(steps):
    assert ["float16", 6] in steps["sparse float16"]["traffic"]
    assert ["float32", 6] in steps["sparse bfloat16"]["traffic"]
    for dtype in ("float16", "bfloat16"):
        np.testing.assert_allclose(
            steps[f"sparse {dtype}"]["update"],
            steps["sparse"]["update"],
            rtol=2**-9,  # two roundings to 11 bits
        )


def test_gradients_that_the_loop_has_summed_are_not_summed_again(steps):
    assert steps["summed by the loop"]["update"] == steps["plain"]["update"]
    assert steps["summed by the loop"]["traffic"] == []


def test_gradients_that_the_loop_has_summed_are_judged_on_every_replica(steps):
    assert steps["summed, one bad"]["update"] == [0.0] * 15
    assert steps["summed, one bad"]["overflows"] == [0, 1]


def test_overflows_are_counted_by_replica(steps):
    assert steps["plain"]["overflows"] == [0, 0]
    assert steps["first bad"]["overflows"] == [1, 0]
    assert steps["both bad"]["overflows"] == [1, 1]
    assert steps["accumulation, one bad"]["overflows"] == [0, 1]


def test_a_sum_that_overflows_is_skipped_and_is_no_replicas_fault(steps):
    # 2e38 on each of two replicas; float32 ends at 3.4e38.
    assert steps["large sum"]["update"] == [0.0] * 15
    assert steps["large sum"]["overflows"] == [0, 0]
    assert steps["large sum"]["stats"]["skipped"] == 1


def test_largest_gradient_of_a_micro_batch_is_that_of_all_replicas(steps):
    # 2**20 on the second replica only: the first would see a headroom of 2**15.
    assert steps["log normal"]["stats"] == steps["log normal, swapped"]["stats"]


def test_values_that_overwrite_their_variable_are_the_largest_of_all(steps):
    assert steps["overwritten"]["update"][:12] == [5.0] * 12


def test_optimizer_of_another_scope_is_refused(steps):
    assert "strategy.scope()" in steps["created outside"]["error"]


def test_optimizer_that_is_built_by_its_first_step_starts_as_if_built_before(steps):
    assert steps["built late"]["update"] == steps["built before"]["update"]


def test_counts_of_another_number_of_replicas_start_afresh(steps):
    assert steps["loaded elsewhere"]["overflows"] == [1]
    assert steps["loaded elsewhere"]["stats"]["skipped"] == 1


def test_overflow_on_one_replica_skips_the_step_on_all():
    result = run_case("poison", 2)
    assert result["changed_by_clean_step"]
    assert result["changed_by_poisoned_step"] == []
    assert result["metrics_are_finite"]
    assert result["replicas_agree"]
    assert result["scales"] == [8.0, 4.0]
    assert result["skipped"] == 1


def test_keras_own_class_lets_one_replica_ruin_all():
    assert run_case("keras_poison", 2)["weights_are_nan"]


def test_keras_own_class_clips_each_replica_alone():
    one, two = (run_case("keras_clip", replicas)["weights"] for replicas in (1, 2))
    difference = max(
        np.abs(np.subtract(a, b)).max() for a, b in zip(one, two, strict=True)
    )
    assert difference > 1e-4  # ours stays within 1e-5


def test_replicas_that_share_their_variables_train_but_cannot_accumulate():
    result = run_case("central_storage", 2)
    assert result["update"] == [-3.0 / 8.0] * 15
    assert "MirroredStrategy" in result["error"]


@pytest.mark.internals
def test_each_replica_puts_its_own_values_back_in_one_node():
    result = run_case("restore", 2)
    assert result["clean"] == {"own": [10.0, 11.0], "shared": [5.0, 5.0]}
    assert result["bad"] == {"own": [1.0, 2.0], "shared": [7.0, 7.0]}
    # However many variables there are, a branch on the device of each replica.
    assert [place[-5:] for place in result["branches"]] == ["CPU:0", "CPU:1"]


@pytest.mark.internals
def test_small_gradients_are_summed_in_stacks():
    result = run_case("stacks", 2)
    assert result["good"] == {"weights": [-3.0] * 12, "overflows": [0, 0]}
    assert result["bad"] == {"weights": [-3.0] * 12, "overflows": [0, 1]}
    # Of 12 gradients that were cast from bfloat16, one stack on each replica is cast.
    assert result["casts"] == 2
    assert result["stacks"] == 2


@pytest.mark.internals
def test_replicas_that_share_their_variables_put_them_back_once():
    result = run_case("restore", 2, "shared")
    assert result["clean"]["shared"] == [5.0]
    assert result["bad"]["shared"] == [7.0]
    assert len(result["branches"]) == 1


def test_apply_outside_a_replica_says_where_it_belongs():
    assert "strategy.run" in run_case("cross_replica", 2)["error"]


# What runs in the processes.


def _model(keras, keras_mp, optimizer, policy, normalize):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(8, activation="relu")]
    if normalize:
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.25)]
    model = keras.Sequential([*layers, keras.layers.Dense(1, dtype="float32")])
    keras_mp.compile(
        model,
        optimizer,
        "mse",
        policy=policy,
        scaling=keras_mp.scaling.DynamicLossScale(initial_scale=8.0),
    )
    return model


def _data():
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    return x, x[:, :1] ** 2


def _spread(strategy, *parts):
    """Return a value that is ``parts[i]`` on replica i."""
    return strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group]
    )


def case_optimizers(replicas):
    """Train two variables with every optimizer and its ways of clipping."""
    strategy = mirrored(replicas)
    return {
        f"{name} {clipping}": _train_with(strategy, replicas, name, clipping)
        for name, clipping in pairs()
    }


def case_large(replicas):
    """Train a variable that is updated in a function of its own."""
    strategy = mirrored(replicas)
    return {
        name: _train_with(strategy, replicas, name, "none", (101, 100))[:100]
        for name in LARGE_WITH
    }


def _train_with(strategy, replicas, name, clipping, shape=(4, 3)):
    import tensorflow as tf

    import keras_mp

    random = np.random.default_rng(0)
    x = random.normal(size=(6, 8, shape[0])).astype("float32")
    y = random.normal(size=(6, 8, shape[1])).astype("float32")
    with strategy.scope():
        weights = [
            keras.Variable(random.normal(size=size), dtype="float32", name=name)
            for name, size in (("kernel", shape), ("bias", shape[1:]))
        ]
        inner = _inner(name, {} if clipping == "none" else {clipping: 0.01})
        optimizer = keras_mp.LossScaleOptimizer(inner, initial_scale=8.0)
        optimizer.build(weights)

    def step_of_replica(x, y):
        kernel, bias = [weight.value for weight in weights]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ kernel + bias - y) ** 2) / replicas
            loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, [kernel, bias])
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    step = tf.function(lambda x, y: strategy.run(step_of_replica, args=(x, y)))
    for batch in zip(x, y, strict=True):
        step(*(_spread(strategy, *np.split(rows, replicas)) for rows in batch))
    return [float(v) for weight in weights for v in weight.numpy().ravel()]


def _inner(name, clip):
    if name == "MultiOptimizer":
        parts = keras.optimizers.SGD(0.1, **clip), keras.optimizers.Adam(0.05, **clip)
        rest, kernel = parts
        by_path = keras.optimizers.OptimizerMap(rest, {".*kernel": kernel})
        return keras.optimizers.MultiOptimizer(by_path)
    return getattr(keras.optimizers, name)(0.05, weight_decay=0.1, **clip)


def case_steps(replicas):
    """Run eager steps with given gradients: pairs of what two replicas have."""
    strategy = mirrored(replicas)
    step = functools.partial(_step, strategy)
    a, b = np.random.default_rng(0).normal(size=(2, 15)).astype("float32")
    ones = np.ones(15, "float32")
    bad = ones * np.inf
    small, large, too_large = ones * 1e-8, ones * 6e4, ones * 2e5

    def windows_of(size):
        return functools.partial(
            keras.optimizers.SGD, 1.0, gradient_accumulation_steps=size
        )

    starts_from_weights = functools.partial(_StartsFromWeights, 1.0)

    def log_normal(*parts):
        return step([parts], windows_of(2), scaling="log_normal")

    return {
        "plain": step([(a, b)]),
        "accumulation": step([(a, b)] * 4, windows_of(4)),
        "accumulation, one bad": step([(ones, bad)], windows_of(2)),
        "float16": step([(a, b)], all_reduce_dtype="float16"),
        "bfloat16": step([(a, b)], all_reduce_dtype="bfloat16"),
        "large parts": step([(large, large)], all_reduce_dtype="float16", scaling=1.0),
        "too large a part": step([(ones, too_large)], all_reduce_dtype="float16"),
        "small parts": step(
            [(small, small)], all_reduce_dtype="float16", scaling=2.0**15, unscaled=True
        ),
        "sparse": step([(a[:6], b[:6])], sparse=True),
        "sparse float16": step(
            [(a[:6], b[:6])], sparse=True, all_reduce_dtype="float16"
        ),
        "sparse bfloat16": step(
            [(a[:6], b[:6])], sparse=True, all_reduce_dtype="bfloat16"
        ),
        "summed by the loop": step([(a + b, a + b)], aggregate_gradients=False),
        "summed, one bad": step([(ones, bad)], aggregate_gradients=False),
        "first bad": step([(bad, ones)]),
        "both bad": step([(bad, bad)]),
        "large sum": step([(ones * 2e38, ones * 2e38)]),
        "log normal": log_normal(ones, ones * 2.0**20),
        "log normal, swapped": log_normal(ones * 2.0**20, ones),
        "overwritten": step([(ones * 5, ones * 3)], overwrites=True),
        "built before": step([(a, b)] * 2, starts_from_weights, start=1.0),
        "built late": step([(a, b)] * 2, starts_from_weights, start=1.0, late=True),
        "created outside": _step_of_optimizer_from_outside(strategy),
        "loaded elsewhere": _load_outside(strategy),
    }


class _StartsFromWeights(keras.optimizers.SGD):
    """Sets first values with operations, as `keras.optimizers.ScheduleFreeAdamW`."""

    def build(self, variables):
        super().build(variables)
        self.starts = self.add_optimizer_variables(variables, "start")
        for start, variable in zip(self.starts, variables, strict=True):
            self.assign(start, variable)

    def update_step(self, gradient, variable, learning_rate):
        start = self.starts[self._get_variable_index(variable)]
        self.assign(variable, start - learning_rate * gradient)


def _step(
    strategy,
    batches,
    inner=None,
    *,
    start=0.0,
    scaling=8.0,
    all_reduce_dtype=None,
    unscaled=False,
    sparse=False,
    overwrites=False,
    late=False,
    **how,
):
    """Apply each of ``batches``, given as scaled gradients by replica, and report."""
    import tensorflow as tf

    import keras_mp

    with strategy.scope():
        shapes = [(5, 3)] if sparse else [(4, 3), (3,)]
        weights = [keras.Variable(np.full(shape, start, "f4")) for shape in shapes]
        weights[0].overwrite_with_gradient = overwrites
        inner = inner() if inner else keras.optimizers.SGD(1.0)
        optimizer = keras_mp.LossScaleOptimizer(
            inner, scaling, all_reduce_dtype=all_reduce_dtype
        )
        if not late:
            optimizer.build(weights)

    def apply(part):
        if sparse:
            rows = tf.constant([1, 3])
            gradients = [tf.IndexedSlices(tf.reshape(part, (2, 3)), rows, (5, 3))]
        else:
            gradients = [tf.reshape(part[:12], (4, 3)), part[12:]]
        optimizer.scale_loss(1.0)
        if unscaled:
            optimizer.get_unscaled_gradients([])  # says that these are
        optimizer.apply(gradients, weights, **how)

    before = _flat(weights)
    with _recorded_traffic() as traffic:
        for parts in batches:
            strategy.run(apply, args=(_spread(strategy, *map(tf.constant, parts)),))
    return {
        "update": (_flat(weights) - before).tolist(),
        "traffic": traffic,
        "overflows": optimizer.overflows_by_replica(),
        "stats": optimizer.stats(),
    }


def _flat(weights):
    return np.concatenate([weight.numpy().ravel() for weight in weights])


@contextlib.contextmanager
def _recorded_traffic():
    """Record the dtype and size of each all-reduce, as replica 0 enters it."""
    import tensorflow as tf

    calls = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def recording(context, operation, value, options=None):
        if context.replica_id_in_sync_group == 0:
            tensors = [
                part.values if isinstance(part, tf.IndexedSlices) else part
                for part in (value if isinstance(value, list) else [value])
            ]
            (dtype,) = {tensor.dtype.name for tensor in tensors}
            calls.append([dtype, sum(int(tf.size(tensor)) for tensor in tensors)])
        return all_reduce(context, operation, value, options)

    tf.distribute.ReplicaContext.all_reduce = recording
    try:
        yield calls
    finally:
        tf.distribute.ReplicaContext.all_reduce = all_reduce


def _step_of_optimizer_from_outside(strategy):
    import keras_mp

    optimizer = keras_mp.LossScaleOptimizer("sgd")
    with strategy.scope():
        weight = keras.Variable([1.0])
    try:
        strategy.run(lambda: optimizer.apply([keras.ops.array([1.0])], [weight]))
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def _load_outside(strategy):
    """Load what two replicas have counted where there is one."""
    import keras_mp

    with strategy.scope():
        weight = keras.Variable([1.0])
        optimizer = keras_mp.LossScaleOptimizer("sgd")
    strategy.run(lambda: optimizer.apply([keras.ops.array([np.inf])], [weight]))
    assert optimizer.overflows_by_replica() == [1, 1]
    store = {}
    optimizer.save_own_variables(store)
    alone = keras_mp.LossScaleOptimizer("sgd")
    alone.build([keras.Variable([1.0])])
    alone.load_own_variables(store)
    return {"stats": alone.stats(), "overflows": alone.overflows_by_replica()}


def case_poison(replicas):
    import keras
    import tensorflow as tf

    import keras_mp

    strategy = mirrored(replicas)
    with strategy.scope():
        model = _model(keras, keras_mp, "adam", "mixed_float16", normalize=True)
    x, y = _data()

    def parts():
        variables = model.variables + model.optimizer.inner_optimizer.variables
        local = {
            f"{i} {v.name}": strategy.experimental_local_results(v.value)
            for i, v in enumerate(variables)
        }
        return {k: [part.numpy().copy() for part in v] for k, v in local.items()}

    def changed(before, after):
        return [
            name
            for name in before
            if not all(map(np.array_equal, before[name], after[name]))
        ]

    def step(x, y):
        # Not `fit`, which would reset the metrics first.
        batch = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        model.train_function(iter(strategy.experimental_distribute_dataset(batch)))

    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    start = parts()
    scales = [model.optimizer.stats()["scale"]]
    step(x[8:16], y[8:16])
    clean = parts()
    poisoned = x[16:24].copy()
    poisoned[7] = 1e30  # in the half of the last replica
    step(poisoned, y[16:24])
    after = parts()
    trained = [v.name for v in model.trainable_variables]
    agree = all(
        all(np.array_equal(part, parts[0]) for part in parts)
        for name, parts in after.items()
        if name.split(" ", 1)[1] in trained
    )
    return {
        "changed_by_clean_step": changed(start, clean),
        "changed_by_poisoned_step": changed(clean, after),
        "metrics_are_finite": all(
            np.isfinite(value) for value in model.get_metrics_result().values()
        ),
        "replicas_agree": agree,
        "scales": [*scales, model.optimizer.stats()["scale"]],
        "skipped": model.optimizer.stats()["skipped"],
    }


def _keras_model(replicas, **clip):
    """Return a model under Keras's own class."""
    import keras

    with mirrored(replicas).scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        inner = keras.optimizers.SGD(0.1, **clip)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
        model.compile(optimizer, "mse")
    return model


def case_keras_poison(replicas):
    model = _keras_model(replicas)
    x, y = _data()
    x[7] = np.inf  # in the half of the last replica
    model.fit(x[:8], y[:8], batch_size=8, shuffle=False, verbose=0)
    return {"weights_are_nan": all(np.isnan(w).all() for w in model.get_weights())}


def case_keras_clip(replicas):
    model = _keras_model(replicas, clipnorm=0.05)
    model.fit(*_data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    return {"weights": [weight.tolist() for weight in model.get_weights()]}


def case_restore(replicas, variables="mirrored"):
    """Assign to variables of two replicas, and put the values back after a bad step."""
    import tensorflow as tf

    from keras_mp import distribute, private

    shared = variables == "shared"
    strategy = _central_storage(replicas) if shared else mirrored(replicas)
    with strategy.scope():
        held = {"shared": keras.Variable(7.0, aggregation="only_first_replica")}
        if not shared:
            on_read = {"synchronization": "on_read", "aggregation": "none"}
            held["own"] = keras.Variable(0.0, **on_read)
    copies = {
        name: strategy.experimental_local_results(variable.value)
        for name, variable in held.items()
    }

    def step_of_replica(clean, number):
        values = private.variables.values_of(list(held.values()))
        held["shared"].assign(5.0)
        if not shared:
            held["own"].assign(number)
        distribute.restore_unless(clean, list(held.values()), values)

    step = tf.function(
        lambda clean, number: strategy.run(step_of_replica, args=(clean, number))
    )
    numbers = _spread(strategy, *map(tf.constant, (10.0, 11.0)))
    result = {}
    for name, clean in (("clean", True), ("bad", False)):
        for place, each in enumerate(copies["shared"] + copies.get("own", ())):
            each.assign(7.0 if place < len(copies["shared"]) else place - 1.0)
        step(tf.constant(clean), numbers)
        result[name] = {
            name: [float(copy) for copy in each] for name, each in copies.items()
        }
    graph = step.get_concrete_function(tf.constant(True), numbers).graph
    branches = [op.device for op in graph.get_operations() if op.type == "If"]
    return result | {"branches": sorted(branches)}


def case_stacks(replicas):
    """Sum many small gradients that were cast from bfloat16."""
    import tensorflow as tf

    import keras_mp

    strategy = mirrored(replicas)
    with strategy.scope():
        weights = [keras.Variable(np.zeros((4, 4), "float32")) for _ in range(12)]
        optimizer = keras_mp.LossScaleOptimizer(keras.optimizers.SGD(1.0), 8.0)
        optimizer.build(weights)

    def step_of_replica(number):
        with tf.GradientTape() as tape:
            narrow = [tf.cast(weight.value, "bfloat16") for weight in weights]
            loss = number * tf.reduce_sum(tf.add_n(narrow))
            loss = optimizer.scale_loss(loss)
        values = [weight.value for weight in weights]
        optimizer.apply(tape.gradient(loss, values), weights)

    step = tf.function(lambda number: strategy.run(step_of_replica, args=(number,)))
    result = {}
    for name, second in (("good", 2.0), ("bad", np.inf)):
        step(_spread(strategy, *(tf.constant(n, "bfloat16") for n in (1.0, second))))
        result[name] = {
            "weights": [float(weight.value[3, 3]) for weight in weights],
            "overflows": optimizer.overflows_by_replica(),
        }
    numbers = _spread(strategy, *(tf.constant(1.0, "bfloat16") for _ in range(2)))
    graph = step.get_concrete_function(numbers).graph
    summed = [op for op in graph.get_operations() if op.type == "CollectiveReduceV2"]
    behind = needed_for(*summed)
    kinds = [(op.type, op.outputs[0].dtype) for op in behind if op.outputs]
    result["casts"] = kinds.count(("Cast", tf.float32))
    result["stacks"] = sum(op.type == "Pack" and len(op.inputs) == 12 for op in behind)
    return result


def _central_storage(replicas):
    import tensorflow as tf

    split_cpu(replicas)
    devices = [f"CPU:{i}" for i in range(replicas)]
    return tf.distribute.experimental.CentralStorageStrategy(devices, devices[0])


def case_central_storage(replicas):
    strategy = _central_storage(replicas)
    parts = np.ones(15, "float32"), np.full(15, 2.0, "float32")
    window = functools.partial(keras.optimizers.SGD, gradient_accumulation_steps=2)
    try:
        _step(strategy, [parts], window)
    except ValueError as error:
        return _step(strategy, [parts]) | {"error": str(error)}


def case_cross_replica(replicas):
    import keras

    import keras_mp

    with mirrored(replicas).scope():
        weight = keras.Variable([1.0])
        optimizer = keras_mp.LossScaleOptimizer("sgd")
        try:
            optimizer.apply([keras.ops.array([1.0])], [weight])
        except ValueError as error:
            return {"error": str(error)}
    return {"error": ""}


if __name__ == "__main__":
    case, *arguments = sys.argv[1].split(":")
    result = globals()[f"case_{case}"](int(sys.argv[2]), *arguments)
    print(json.dumps(result))
