"""What this package takes from Keras's private side holds on the Keras at hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mp
from keras_mp import private


def test_sublayers_finds_what_layers_hold():
    dense, act = keras.layers.Dense(2), keras.layers.Activation("relu")
    assert private.sublayers(keras.Sequential([dense, act])) == [dense, act]
    assert private.sublayers(keras.layers.TimeDistributed(dense)) == [dense]
    lstm = keras.layers.LSTM(2)
    assert private.sublayers(lstm) == [lstm.cell]
    assert private.sublayers(dense) == []


def test_sublayers_of_attention():
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer(np.ones((1, 4, 5)), np.ones((1, 4, 5)))
    kinds = [type(inner).__name__ for inner in private.sublayers(layer)]
    assert kinds.count("EinsumDense") == 4
    assert kinds.count("Softmax") == 1


def test_sublayers_is_a_list_of_its_own():
    model = keras.Sequential([keras.layers.Dense(2)])
    private.sublayers(model).clear()
    assert len(private.sublayers(model)) == 1


def test_walk_finds_every_layer_once():
    shared = keras.layers.Dense(2)
    inner = keras.Sequential([shared, keras.layers.Softmax()])
    outer = keras.Sequential([inner, shared])
    found = private.walk(outer)
    assert found[0] is outer
    assert set(found) == {outer, inner, shared, inner.layers[1]}
    assert len(found) == len(set(found))


def test_set_layer_policy_changes_one_layer_of_a_shared_map():
    shared = keras.dtype_policies.DTypePolicyMap(
        default_policy=keras.DTypePolicy("mixed_float16")
    )
    first, second = (keras.layers.Dense(2, dtype=shared) for _ in range(2))
    private.set_layer_policy(first, keras.DTypePolicy("float32"))
    assert first.compute_dtype == first(np.ones((1, 2))).dtype.name == "float32"
    assert second.compute_dtype == second(np.ones((1, 2))).dtype.name == "float16"


def test_hook_sees_name_and_path_and_can_be_put_back(monkeypatch):
    base = keras.layers.Layer
    unhooked = keras.Operation._setattr_hook
    monkeypatch.setattr(base, "_setattr_hook", unhooked)
    seen, given = [], []

    def resolve(layer, policy, path, attribute):
        assert attribute == "_dtype_policy"
        seen.append((layer, policy.name, path))
        return keras.DTypePolicy("bfloat16") if path == "model/inside" else policy

    def assigned(layer, name, value):
        given.append((layer, name))
        return 7 if name == "units" else value

    private.layer_hook(resolve, lambda layer, sublayer: None, assigned)
    layer = keras.layers.Dense(2, name="inside")
    assert (layer, "float32", "inside") in seen
    assert layer.compute_dtype == "float32"
    keras.Sequential([keras.Input((3,)), layer], name="model")
    assert (layer, "float32", "model/inside") in seen
    assert layer.compute_dtype == layer.kernel.dtype == "bfloat16"
    assert (layer, "built") in given and layer.units == 7


def test_hook_leaves_other_attributes_and_tracking_alone():
    class Holder(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=())
            self.child = keras.layers.Dense(1)
            self.children = [keras.layers.Dense(1)]
            self.text = "text"

    holder = Holder()
    assert len(holder.weights) == 1
    assert private.sublayers(holder) == [holder.child, *holder.children]
    assert holder.text == "text"


def test_build_for_creates_every_variable():
    model = keras.Sequential(
        [
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", loss="mse", metrics=["mae"])
    x, y = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
    assert not model.built
    private.build_for(model, (tf.constant(x), tf.constant(y)))
    assert [w.shape for w in model.trainable_variables][0] == (4, 3)
    before = (
        len(model.variables),
        len(model.metrics_variables),
        len(model.optimizer.variables),
    )
    model.train_on_batch(x, y)
    after = (
        len(model.variables),
        len(model.metrics_variables),
        len(model.optimizer.variables),
    )
    assert before == after
    private.build_for(model, (tf.constant(x), tf.constant(y)))
    assert len(model.variables) == after[0]


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_raise_if_raises_with_its_message_only_if_true(wrap):
    @wrap
    def step(flag):
        private.raise_if(flag, "the scale is stuck")
        return tf.constant(1)

    assert int(step(tf.constant(False))) == 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="the scale is stuck"):
        step(tf.constant(True))


def test_policies_need_no_path_on_layers_that_keras_gives_none():
    policy = keras_mp.Policy("mixed_float16", float32=["quiet"])
    layer = keras.layers.Activation("relu", name="quiet", dtype=policy)
    layer(np.ones((1, 2)))
    assert layer.path is None  # the reason for the hook
    assert layer.compute_dtype == "float32"


def under_a_strategy():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    return model


def test_strategy_of_is_the_models_own():
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    outside = keras.Sequential()
    with strategy.scope():
        inside = keras.Sequential()
        assert private.strategy_of(outside) is None
        assert outside.distribute_strategy is strategy  # the reason for the function
    assert private.strategy_of(inside) is strategy


def test_build_from_draws_a_batch_only_for_an_unbuilt_model():
    drawn = []

    def batches(epoch_iterator):
        for first, last, _ in epoch_iterator:
            drawn.append(first)
            yield first, last, [(tf.TensorSpec((2, 4)), tf.TensorSpec((2, 1)))]

    model = under_a_strategy()
    private.build_from(model, batches)
    for _ in range(2):
        model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0)
        model.evaluate(np.ones((2, 4)), np.ones((2, 1)), verbose=0)
    assert drawn == [0]
    assert model.layers[0].kernel.shape == (4, 1)


def test_build_from_leaves_a_model_without_call_to_its_train_step():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Model()
    private.build_from(model, None)
    model._maybe_symbolic_build(iterator=[])


def test_run_steps_with_gets_a_function_that_takes_lists_of_batches():
    functions = []

    def choose(make):
        function = make()
        functions.append(function)
        return lambda iterator: function([next(iterator)])

    model = under_a_strategy()
    private.run_steps_with(model, choose, "mark")
    model.fit(np.ones((6, 4)), np.ones((6, 1)), batch_size=2, verbose=0)
    assert len(functions) == 1
    assert model.optimizer.iterations == 3
    batch = (tf.ones((2, 4)), tf.ones((2, 1)))
    assert set(functions[0]([batch])) == {"loss"}
    assert model.optimizer.iterations == 4


def test_replaced_attributes_are_gone_afterwards():
    owner = keras.optimizers.SGD()
    with pytest.raises(KeyError):
        with private.replaced(owner, extra=1):
            assert owner.extra == 1
            raise KeyError
    assert not hasattr(owner, "extra")


def test_an_optimizer_updates_as_what_it_inherits_from():
    class Own(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            pass

    class Writes(keras.optimizers.Adam):
        def assign_sub(self, variable, value):
            super().assign_sub(variable, value)

    adam = keras.optimizers.Adam
    assert private.updates_as(keras.optimizers.AdamW(), adam)
    assert not private.updates_as(keras.optimizers.SGD(), adam)
    assert not private.updates_as(Own(), adam)
    assert not private.updates_as(Writes(), adam)
    patched = keras.optimizers.Adam()
    patched.update_step = lambda *arguments: None
    assert not private.updates_as(patched, adam)


def test_slots_are_those_of_the_variable():
    weights = [keras.Variable(np.ones(size)) for size in (2, 3)]
    optimizer = keras.optimizers.Adam()
    optimizer.build(weights)
    (momentum, velocity) = private.slots(
        optimizer, weights[1].value, ["_momentums", "_velocities"]
    )
    assert momentum is optimizer._momentums[1].value
    assert velocity is optimizer._velocities[1].value


@pytest.mark.parametrize("compiled", [True, False])
def test_xla_is_known_where_it_traces(compiled):
    seen = []
    tf.function(lambda: seen.append(private.in_xla()), jit_compile=compiled)()
    assert seen == [compiled]
    assert not private.in_xla()


def test_updates_go_through_what_was_given():
    weight = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([weight])
    calls = []

    def update(keras_update, gradients, variables, learning_rate):
        calls.append("all")
        keras_update([-gradient for gradient in gradients], variables, learning_rate)

    def update_one(update_step, gradient, variable, learning_rate):
        calls.append("one")
        update_step(gradient, variable, learning_rate)

    with private.updating_by(optimizer, update, update_one):
        optimizer.apply([tf.constant([1.0, 1.0])])
    assert calls == ["all", "one"]
    np.testing.assert_array_equal(weight.numpy(), [1.5, 2.5])
    optimizer.apply([tf.constant([1.0, 1.0])])
    np.testing.assert_array_equal(weight.numpy(), [1.0, 2.0])


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (2, 2, 4, 3), (1, 2, 2, 2, 3)])
def test_a_batch_is_normalized_by_one_kernel(shape):
    x = np.random.default_rng(0).normal(2.0, 3.0, shape).astype("float32")
    axes = tuple(range(len(shape) - 1))
    gamma, beta = np.float32([1, 2, 3]), np.float32([0, 1, -1])
    outputs, mean, variance = private.batch_normalized(x, gamma, beta, 1e-3)
    expected = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-3) * gamma + beta
    # float32 sums of a few numbers, in any order
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var(axes), rtol=1e-5)


def test_stacked_variables_are_read_and_added_to():
    variables = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])]
    np.testing.assert_array_equal(private.stacked(variables), [[1, 2], [3, 4]])
    private.add_to(variables, tf.constant([[10.0, 0.0], [0.0, 10.0]]))
    np.testing.assert_array_equal(private.stacked(variables), [[11, 2], [3, 14]])


@pytest.mark.parametrize("run", [lambda function: function, tf.function])
@pytest.mark.parametrize("condition", [True, False])
def test_a_condition_chooses_a_function(run, condition):
    number, rows = tf.constant(2.0), tf.constant([3, 4])

    @run
    def choose(condition):
        return private.cond(
            condition,
            lambda: [number, tf.constant(True)],
            lambda: [-number, tf.size(rows) == 1],
        )

    number, flag = choose(tf.constant(condition))
    assert float(number) == (2.0 if condition else -2.0)
    assert bool(flag) == condition


@pytest.mark.cpu
def test_a_condition_is_one_operation_whatever_enters_it():
    # TensorFlow lowers an If to a Switch for each input where this attribute is set.
    @tf.function
    def step(condition, *parts):
        def inner():
            executors.append(context.context().function_call_options.executor_type)
            return tf.cond(parts[0] > 1.0, lambda: tf.add_n(parts), lambda: 1.0)

        return private.cond(condition, lambda: tf.constant(0.0), inner)

    from tensorflow.python.eager import context

    executors = []
    specs = [tf.TensorSpec((), "bool"), *[tf.TensorSpec(())] * 9]
    graph = step.get_concrete_function(*specs).graph
    (branch,) = [op for op in graph.get_operations() if "If" in op.type]
    with pytest.raises(ValueError, match="_lower_using_switch_merge"):
        branch.get_attr("_lower_using_switch_merge")
    # What a branch traces by itself is as always.
    nodes = [node for f in graph.as_graph_def().library.function for node in f.node_def]
    (nested,) = [node for node in nodes if "If" in node.op]
    assert nested.attr["_lower_using_switch_merge"].b
    assert executors == [""]


def test_a_tensor_is_known_by_what_it_was_cast_from():
    @tf.function
    def function(narrow, whole):
        assert private.before_cast(tf.cast(narrow, "float32")) is narrow
        assert private.before_cast(narrow) is narrow
        wide = tf.cast(whole, "float32")
        assert private.before_cast(wide) is wide

    function(tf.constant(1.0, "bfloat16"), tf.constant(1))
    eager = tf.cast(tf.constant(1.0, "bfloat16"), "float32")
    assert private.before_cast(eager) is eager


def test_tensors_are_known_by_what_they_were_unstacked_from():
    @tf.function
    def function(stack):
        a, b, c = tf.unstack(stack)
        assert private.before_unstack(a) is stack
        assert private.before_unstack(a, b, c) is stack
        for others in [(a, b), (a, c, b), (a, b, tf.identity(c)), (stack,)]:
            assert private.before_unstack(*others) is None
        across = tf.unstack(stack, axis=1)
        assert private.before_unstack(*across) is None

    function(tf.ones((3, 3)))
    eager = tf.unstack(tf.ones((3, 3)))
    assert private.before_unstack(*eager) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "float32"])
def test_only_casts_from_narrow_floats_are_done_again(dtype):
    kinds = []

    @tf.function
    def function(tensor):
        result = tf.cast(tensor, "float32") if dtype != "float32" else tensor + 1.0
        again = private.cast_here(result)
        kinds.append(again is not result)
        return again, result

    again, result = function(tf.constant([1, 2], dtype))
    np.testing.assert_array_equal(again, result)
    assert kinds == [dtype in private.LOW_PRECISION]
    assert private.cast_here(again) is again  # eager


def test_variables_are_read_as_stored_in_a_call_too():
    class Reads(keras.layers.Layer):
        def build(self, input_shape):
            self.weight = self.add_weight(shape=(), initializer="zeros")

        def call(self, inputs):
            seen.append(self.weight.dtype)
            with private.variables_as_stored():
                seen.append(self.weight.dtype)
            seen.append(self.weight.dtype)
            return inputs

    seen = []
    Reads(dtype="mixed_float16")(np.zeros((1, 2), "float32"))
    assert seen == ["float16", "float32", "float16"]


def test_variables_are_read_in_the_dtype_asked_for():
    variable = keras.Variable(np.ones(2), dtype="float16")
    with private.variables_read_in("float32"):
        assert (variable * 1).dtype == "float32"
        with private.variables_as_stored():
            assert (variable * 1).dtype == "float16"
    assert (variable * 1).dtype == "float16"


def test_attributes_for_now_are_put_back_after_an_error():
    policy = keras_mp.Policy("mixed_float16", float32=["never"])
    layer = keras.layers.Dense(2, dtype=policy)
    own, losses = layer._dtype_policy, layer._losses
    changes = [
        *private.policy_as(layer, keras.DTypePolicy("float32")),
        *private.losses_apart(layer),
    ]
    with pytest.raises(RuntimeError), private.attributes_for_now(changes):
        assert layer(np.ones((1, 2))).dtype == "float32"
        layer.add_loss(keras.ops.ones(()))
        raise RuntimeError
    assert layer._dtype_policy is own and layer._losses is losses and not losses
    assert layer(np.ones((1, 2))).dtype == "float16"


def test_the_dtype_of_an_input_is_the_one_it_is_cast_to():
    inputs = keras.Input((1,), dtype="float16")
    model = keras.Model(inputs, keras.layers.Identity(dtype="float32")(inputs))
    x = np.full((1, 1), 2049, "float32")
    with private.attributes_for_now(private.input_in(model.layers[0], "float32")):
        assert model(x) == 2049
    assert model(x) == 2048
    other = keras.layers.InputLayer((1,), dtype="int32")
    assert list(private.input_in(other, "float32")) == []


@pytest.mark.parametrize(
    "raises",
    [
        lambda x: x * tf.ones(3),
        lambda x: tf.concat([x, tf.ones(3)], 0),
        lambda x: tf.linalg.matvec(tf.eye(3), x),
        lambda x: tf.cond(tf.constant(True), lambda: x, lambda: tf.ones(3)),
        lambda x: tf.signal.rfft(x),
        lambda x: tf.range(tf.cast(3, x.dtype), dtype=x.dtype),
        lambda x: tf.function(tf.sin, input_signature=[tf.TensorSpec((3,))])(x),
        lambda x: tf.Variable([1.0, 2.0, 3.0]).assign(x),
    ],
)
def test_errors_about_dtypes_are_known(raises):
    def run(x):
        return raises(x)

    with pytest.raises(Exception) as caught:
        tf.function(run).get_concrete_function(tf.TensorSpec((3,), "float16"))
    assert private.is_dtype_error(caught.value), caught.value


@pytest.mark.parametrize(
    "raises",
    [
        lambda x: tf.reshape(x, (5,)),
        lambda x: tf.matmul(x, x),
        lambda x: x[0] if x.shape[0] > 5 else {}["float16"],
        lambda x: keras.layers.Dense(2)(x, 1, 2, 3),
    ],
)
def test_other_errors_are_not_taken_for_those(raises):
    with pytest.raises(Exception) as caught:
        raises(tf.ones((3,), "float16"))
    assert not private.is_dtype_error(caught.value), caught.value


def test_the_layer_of_an_operation_without_a_kernel_is_found():
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    own = Own(name="own")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), own])
    text = "No OpKernel was registered to support Op 'X' used by {{node a/own_1/X}}"
    assert private.without_kernel(model, ValueError(text)) is own
    assert private.without_kernel(model, ValueError(text.replace("own", "no"))) is None
    assert private.without_kernel(model, ValueError("another")) is None
