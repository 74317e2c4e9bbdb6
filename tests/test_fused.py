"""One-pass updates against Keras's own: the same results, in fewer operations."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import fused, stacks
from keras_mp.fused import compiled, plan

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam

INNER = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.1),
    "amsgrad": lambda: Adam(0.1, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.01),
    "clipped": lambda: Adam(0.1, global_clipnorm=0.5),
    "averaged": lambda: Adam(0.1, use_ema=True, ema_overwrite_frequency=2),
    "schedule": lambda: SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)),
    "other": lambda: keras.optimizers.RMSprop(0.1),
}
# Four of a shape that is stacked, one alone, one large one, one scalar.
SHAPES = [*[(3, 4)] * 4, (5,), (130, 70), ()]

RUNS = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def variables(shapes=SHAPES, dtype="float32"):
    random = np.random.default_rng(0)
    return [
        keras.Variable(random.normal(size=shape), dtype=dtype, name=f"weight_{place}")
        for place, shape in enumerate(shapes)
    ]


def gradients(step, shapes=SHAPES):
    random = np.random.default_rng(step)
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def train(inner, mode, dtype="float32", steps=4, scale=1024.0):
    """Return what our optimizer, or the bare one if ``scale`` is None, makes."""
    optimizer, scale = inner(), scale or 1.0
    if scale != 1.0:
        optimizer = keras_mp.LossScaleOptimizer(optimizer, initial_scale=scale)
    weights = variables(dtype=dtype)
    optimizer.build(weights)

    def step(grads):
        if scale != 1.0:
            optimizer.scale_loss(0.0)
        optimizer.apply([tf.cast(g, dtype) * scale for g in grads])

    step = RUNS[mode](step)
    for number in range(steps):
        step([tf.constant(g) for g in gradients(number)])
    return weights + getattr(optimizer, "inner_optimizer", optimizer).variables


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("name", INNER)
def test_updates_are_those_of_keras(name, mode, dtype):
    ours = train(INNER[name], mode, dtype)
    # A graph joins constant factors, and so rounds in another order. Here only Keras's
    # operations on a large variable are one; others are done as in eager execution.
    eager, graph = (
        train(INNER[name], m, dtype, scale=None) for m in ("eager", "graph")
    )
    large = (130, 70) if name == "other" and mode == "graph" else None
    # Adam's 1 - beta_2 is taken in float32 here, and in Python by Keras: 5e-5 of it, so
    # 2.5e-5 of an update, of which there are four of 0.1. Other dtypes are Keras's.
    rounding = {"float32": 3e-5, "float64": 1e-12, "bfloat16": 1e-6}[dtype]
    for a, b, c in zip(ours, eager, graph, strict=True):
        bare = c if tuple(a.shape) == large else b
        a, b = (np.asarray(v.numpy(), "float64") for v in (a, bare))
        np.testing.assert_allclose(a, b, rtol=2 * rounding, atol=rounding / 10)


def operations(optimizer, grads, jit_compile=None):
    """Return the types of all operations of one traced step."""
    apply = tf.function(lambda *grads: optimizer.apply(grads), jit_compile=jit_compile)
    concrete = apply.get_concrete_function(*grads)
    graphs = [concrete.graph.as_graph_def()]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [n for graph in graphs for f in graph.library.function for n in f.node_def]
    return [node.op for node in nodes]


def built(inner, shapes):
    optimizer = keras_mp.LossScaleOptimizer(inner)
    weights = variables(shapes)
    optimizer.build(weights)
    optimizer.scale_loss(0.0)
    return optimizer, weights


@pytest.mark.parametrize(
    "inner, kernel",
    [
        (lambda: SGD(0.1), "ResourceApplyGradientDescent"),
        (lambda: SGD(0.1, clipvalue=9.0), "ResourceApplyGradientDescent"),
        (lambda: SGD(0.1, momentum=0.9), "ResourceApplyKerasMomentum"),
        (lambda: Adam(0.1), "ResourceApplyAdam"),
        (lambda: Adam(0.1, amsgrad=True), "ResourceApplyAdamWithAmsgrad"),
    ],
)
def test_a_large_variable_has_one_kernel_and_no_other_pass(inner, kernel):
    shape = (300, 300)
    optimizer, _ = built(inner(), [shape])
    done = operations(optimizer, [tf.ones(shape)])
    assert done.count(kernel) == 1
    # In XLA, where it is Keras's own, there is none.
    assert kernel not in operations(optimizer, [tf.ones(shape)], jit_compile=True)


@pytest.mark.cpu
@pytest.mark.parametrize(
    # float16 is judged as float32, and so has been cast already.
    "dtype, large, compiled",
    [
        ("float16", 90_000, False),
        ("bfloat16", 90_000, True),
        ("bfloat16", 90_001, False),
    ],
)
def test_a_large_narrow_gradient_is_cast_where_it_is_read(
    dtype, large, compiled, monkeypatch
):
    monkeypatch.setattr(stacks, "LARGE", large)
    shape = (300, 300)
    optimizer, (weight,) = built(SGD(0.1), [shape])
    before = weight.numpy()
    narrow = tf.cast(tf.fill(shape, 2.0**15), dtype)

    @tf.function
    def step(narrow):
        optimizer.apply([tf.cast(narrow, "float32")])

    step(narrow)
    np.testing.assert_allclose(weight.numpy(), before - 0.1, atol=1e-7)
    library = step.get_concrete_function(narrow).graph.as_graph_def().library
    kinds = [node.op for f in library.function for node in f.node_def]
    assert compiled == any("_XlaMustCompile" in f.attr for f in library.function)
    assert ("ResourceApplyGradientDescent" in kinds) != compiled
    step(narrow * np.inf)
    assert optimizer.stats()["skipped"] == 1
    np.testing.assert_allclose(weight.numpy(), before - 0.1, atol=1e-7)


@pytest.mark.cpu
def test_small_variables_of_adam_are_updated_together():
    few, many = [(3, 4)] * 4, [(3, 4)] * 20
    counts = []
    for shapes in (few, many):
        optimizer, _ = built(Adam(0.1), shapes)
        done = operations(optimizer, [tf.ones(shape) for shape in shapes])
        assert "ResourceApplyAdam" not in done
        counts.append({kind: done.count(kind) for kind in ("Mul", "Sqrt", "RealDiv")})
    assert counts[0] == counts[1]


def test_too_few_small_variables_have_a_kernel_each():
    # Starting three takes less than a stack, a compiled formula and three sums.
    for optimizer, kernel in (
        (Adam(0.1), "ResourceApplyAdam"),
        (SGD(0.1), "ResourceApplyGradientDescent"),
    ):
        optimizer, _ = built(optimizer, [(3, 4)] * 3)
        done = operations(optimizer, [tf.ones((3, 4))] * 3)
        assert done.count(kernel) == 3
        assert "Unpack" not in done


@pytest.mark.cpu
def test_many_small_variables_of_plain_sgd_are_updated_together():
    """The change of all is one product, and what it multiplies is what was judged."""
    counts = []
    for many in (plan.MANY, 2 * plan.MANY):
        shapes = [(3, 4)] * many
        optimizer, _ = built(SGD(0.1), shapes)
        done = operations(optimizer, [tf.ones(shape) for shape in shapes])
        counts.append({kind: done.count(kind) for kind in ("MulNoNan", "Unpack", "If")})
    assert counts[0] == counts[1] == {"MulNoNan": 1, "Unpack": 1, "If": 0}


def test_fewer_small_variables_of_plain_sgd_have_a_kernel_each_in_a_branch():
    shapes = [(3, 4)] * (plan.MANY - 1)
    optimizer, _ = built(SGD(0.1), shapes)
    done = operations(optimizer, [tf.ones(shape) for shape in shapes])
    assert done.count("ResourceApplyGradientDescent") == len(shapes)
    assert "MulNoNan" not in done and done.count("If") == 1


ELEMENTWISE = {cls.__name__: functools.partial(cls, 0.1) for cls in plan.ELEMENTWISE}
ELEMENTWISE["centered"] = lambda: keras.optimizers.RMSprop(0.1, 0.9, 0.9, centered=True)
ELEMENTWISE["clipped one"] = lambda: keras.optimizers.Lion(0.1, clipnorm=0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_compiled_updates_are_those_of_keras(name, dtype, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 36)
    ours = train(ELEMENTWISE[name], "graph", dtype)
    bare = train(ELEMENTWISE[name], "eager", dtype, scale=None)
    # Four updates of about 0.1, or of 1 divided by its own size, in another order of
    # operations: a few units in the last place.
    rounding = {"float32": 2e-6, "float64": 1e-12}[dtype]
    for a, b in zip(ours, bare, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=rounding, atol=rounding)


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(300, 300), (3, 300)])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_updates_of_large_variables_only_are_compiled(name, shape, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 90_000)
    optimizer, _ = built(ELEMENTWISE[name](), [shape])
    step = tf.function(lambda gradient: optimizer.apply([gradient]))
    graph = step.get_concrete_function(tf.ones(shape)).graph.as_graph_def()
    compiled = sum("_XlaMustCompile" in f.attr for f in graph.library.function)
    assert compiled == (1 if shape == (300, 300) else 0)


@pytest.mark.parametrize("shape, calls", [((300, 300), 1), ((3, 4), 0)])
def test_keras_operations_on_a_large_variable_are_a_function(shape, calls):
    optimizer, _ = built(keras.optimizers.Lamb(0.1), [shape])
    done = operations(optimizer, [tf.ones(shape)])
    assert done.count("StatefulPartitionedCall") == calls


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_bad_step_compiles_to_no_change(name, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 36)
    optimizer, weights = built(ELEMENTWISE[name](), SHAPES)
    step = tf.function(lambda *grads: optimizer.apply(grads))
    step(*map(tf.constant, gradients(0)))
    held = weights + optimizer.inner_optimizer.variables
    before = [variable.numpy() for variable in held]
    grads = gradients(1)
    grads[-2].flat[1] = np.inf
    step(*map(tf.constant, grads))
    for variable, value in zip(held, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("large", [1, stacks.LARGE], ids=["compiled", "Keras's own"])
@pytest.mark.parametrize("rows", [None, 6], ids=["any number of rows", "6 rows"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "amsgrad", "clipped"])
def test_sparse_gradients_are_those_of_keras(name, rows, large, monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", large)
    values = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    indices = np.array([7, 0, 3, 3, 1, 7], "int32")
    tables = []
    for scale in (1024.0, None):
        optimizer = INNER[name]()
        if scale:
            optimizer = keras_mp.LossScaleOptimizer(optimizer, initial_scale=scale)
        (table,) = variables([(9, 4)])
        optimizer.build([table])

        @tf.function(
            input_signature=[
                tf.TensorSpec([rows, 4], "float32"),
                tf.TensorSpec([rows], "int32"),
            ]
        )
        def step(values, indices, optimizer=optimizer, scale=scale):
            if scale:
                optimizer.scale_loss(0.0)
            slices = tf.IndexedSlices(
                values * (scale or 1.0), indices, tf.constant([9, 4])
            )
            optimizer.apply([slices])

        for taken in (6, 6) if rows else (6, 5, 1, 0):
            step(values[:taken], indices[:taken])
        tables.append(table.numpy())
    # XLA's power may differ in the last place: of 1 - beta_2**t, at first 0.001, that
    # is 6e-5, so 3e-5 of Adam's updates, which are of the size of 0.1.
    np.testing.assert_allclose(*tables, rtol=1e-6, atol=3e-6)


def test_sparse_gradients_do_not_make_later_reads_copy(monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", 36)
    optimizer, _ = built(SGD(0.1), [(9, 4)])

    def rows(values):
        return tf.IndexedSlices(values, tf.constant([1, 3]), tf.constant([9, 4]))

    apply = tf.function(lambda values: optimizer.apply([rows(values)]))
    graph = apply.get_concrete_function(tf.ones([2, 4])).graph.as_graph_def()
    called = [node.op for f in graph.library.function for node in f.node_def]
    compiled = [f for f in graph.library.function if "_XlaMustCompile" in f.attr]
    scattering = [
        f
        for f in graph.library.function
        if any(node.op.startswith("ResourceScatter") for node in f.node_def)
    ]
    assert any(op.startswith("ResourceScatter") for op in called)
    assert [f.signature.name for f in scattering] == [
        f.signature.name for f in compiled
    ]


@pytest.mark.parametrize("rows, size", [(0, 1), (1, 1), (2, 2), (3, 4), (65, 128)])
def test_rows_are_padded_with_zeros_to_a_power_of_two(rows, size):
    spec = [tf.TensorSpec([None, 2], "float32"), tf.TensorSpec([None], "int64")]
    padded = tf.function(compiled.padded, input_signature=spec)
    values, indices = padded(np.ones((rows, 2)), np.arange(rows))
    assert values.shape == (size, 2) and indices.shape == (size,)
    np.testing.assert_array_equal(values[rows:], np.zeros((size - rows, 2)))
    np.testing.assert_array_equal(indices[:rows], np.arange(rows))


@pytest.mark.parametrize("many", [1, 100], ids=["masks", "branches"])
@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:3]], ids=["all", "small"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("mode", RUNS)
@pytest.mark.parametrize("name", INNER)
def test_a_bad_step_changes_nothing(name, mode, bad, shapes, many, monkeypatch):
    monkeypatch.setattr(plan, "MANY", many)
    optimizer, weights = built(INNER[name](), shapes)
    step = RUNS[mode](lambda *grads: optimizer.apply(grads))
    step(*map(tf.constant, gradients(0, shapes)))
    held = weights + optimizer.inner_optimizer.variables
    before = [variable.numpy() for variable in held]
    grads = gradients(1, shapes)
    grads[-2].flat[1] = bad
    step(*map(tf.constant, grads))
    for variable, value in zip(held, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert optimizer.stats()["skipped"] == 1


@pytest.mark.parametrize("mode", RUNS)
def test_a_bad_step_does_not_apply_a_constraint(mode):
    """Even a gradient of zero would: the start is outside of it."""
    weight = keras.Variable(np.full((3, 4), 5.0, "float32"))
    weight.constraint = keras.constraints.MaxNorm(1.0)
    optimizer = keras_mp.LossScaleOptimizer(SGD(0.1))
    optimizer.build([weight])
    optimizer.scale_loss(0.0)
    step = RUNS[mode](lambda grad: optimizer.apply([grad]))
    step(tf.fill((3, 4), np.inf))
    np.testing.assert_array_equal(weight, np.full((3, 4), 5.0))
    assert optimizer.iterations.numpy() == 0
    step(tf.zeros((3, 4)))
    assert weight.numpy().max() < 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_masked_rows_change_nothing_either(jit_compile, monkeypatch):
    monkeypatch.setattr(plan, "MANY", 0)
    optimizer, (table,) = built(SGD(0.1), [(9, 4)])

    @tf.function(jit_compile=jit_compile)
    def step(values):
        rows = tf.IndexedSlices(values, tf.constant([1, 3]), tf.constant([9, 4]))
        optimizer.apply([rows])

    before = table.numpy()
    step(tf.constant(np.inf, shape=(2, 4)))
    np.testing.assert_array_equal(table.numpy(), before)
    assert optimizer.iterations.numpy() == 0
    step(tf.ones((2, 4)))
    assert (table.numpy() != before).any(axis=1).tolist() == [
        row in (1, 3) for row in range(9)
    ]
    assert optimizer.iterations.numpy() == 1


@pytest.mark.parametrize(
    "inner, expected",
    [
        (lambda: SGD(0.1), True),
        (lambda: keras.optimizers.RMSprop(0.1), True),
        (lambda: SGD(0.1, clipnorm=1.0), False),
        (lambda: keras.optimizers.Lamb(0.1), False),
    ],
    ids=["known", "elementwise", "clipped", "other"],
)
def test_who_divides_by_the_scale(inner, expected):
    inner = inner()
    inner.build(variables())
    assert fused.Plan(inner, keras.Variable(8.0), [], []).divides == expected


@pytest.mark.parametrize("shape, branches", [((3, 4), 0), ((130, 70), 1)])
def test_small_variables_need_no_branch_in_xla(shape, branches):
    optimizer, _ = built(Adam(0.1), [shape])
    done = operations(optimizer, [tf.ones(shape)], jit_compile=True)
    assert done.count("If") == branches


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_enters_a_branch_of_xla_is_narrow(dtype):
    optimizer, _ = built(Adam(0.1), [(130, 70)])

    @tf.function(jit_compile=True)
    def step(narrow):
        optimizer.apply([tf.cast(narrow, "float32")])

    graph = step.get_concrete_function(tf.ones((130, 70), dtype)).graph.as_graph_def()
    (branch,) = (
        function
        for function in graph.library.function
        if any(node.op == "AssignSubVariableOp" for node in function.node_def)
    )
    entering = [argument.type for argument in branch.signature.input_arg]
    assert tf.as_dtype(dtype).as_datatype_enum in entering


def test_an_own_update_step_is_kept():
    class Own(SGD):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(tf.sign(gradient))

    optimizer, (weight,) = built(Own(0.1), [(2,)])
    weight.assign([0.0, 2.0])
    optimizer.apply([tf.constant([3.0, -5.0])])
    np.testing.assert_array_equal(weight.numpy(), [-1.0, 3.0])


def test_the_optimizer_is_as_it_was_afterwards():
    inner = Adam(0.1)
    inner.build(variables())
    before = set(vars(inner))
    with pytest.raises(RuntimeError, match="in the middle"):
        with fused.Plan(inner, None, [], []).in_effect():
            assert set(vars(inner)) > before
            raise RuntimeError("in the middle")
    assert set(vars(inner)) == before


def test_parts_of_a_multi_optimizer_are_replaced_one_by_one():
    def inner():
        rules = {".*[05]": SGD(0.1)}  # a small and a large one
        by_path = keras.optimizers.OptimizerMap(Adam(0.1), rules)
        return keras.optimizers.MultiOptimizer(by_path)

    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    ours, bare = train(inner, "graph"), train(inner, "graph", scale=None)
    for a, b in zip(ours, bare, strict=True):
        # As in test_updates_are_those_of_keras.
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=6e-5, atol=3e-5)
