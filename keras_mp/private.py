"""The one place that touches what Keras keeps private or lacks, and why it has to.

Every function here is tested on the oldest and the newest supported Keras.
"""

import contextlib
import functools
import inspect
import os
import re
import sys

import keras

LOW_PRECISION = ("float16", "bfloat16")


def sublayers(layer):
    """Return the direct sublayers of ``layer``.

    Public ``Model.layers`` knows models only; attention, RNN and wrapper layers keep
    their sublayers in ``_layers``.
    """
    return list(layer._layers)


def graph_of(model):
    """Return the Functional model that ``model`` is, or has if it is Sequential."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model


def named_outputs(model):
    """Return pairs of the name and the symbolic tensor of each output of a graph.

    The names are those by which losses are given: the keys where outputs are a dict.
    """
    graph = graph_of(model)
    struct = getattr(graph, "_outputs_struct", None)
    if isinstance(struct, dict):
        names = {id(tensor): key for key, tensor in struct.items()}
        return [(names.get(id(tensor)), tensor) for tensor in graph.outputs]
    return list(zip(graph.output_names, graph.outputs, strict=True))


def source_of(tensor):
    """Return what computes a symbolic ``tensor``, and which of its outputs it is."""
    history = tensor._keras_history
    return history.operation, history.tensor_index


def inputs_of(tensor):
    """Return the symbolic tensors that a symbolic ``tensor`` is computed from."""
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return list(node.arguments.keras_tensors)


def graph_operations(model):
    """Return the operations of a Functional model that are no layers, inputs first."""
    operations = getattr(model, "operations", ())
    return [each for each in operations if not isinstance(each, keras.layers.Layer)]


def readers_of_operation(operation):
    """Return the operations and layers that read what ``operation`` returns."""
    return [node.operation for node in operation._outbound_nodes]


def walk(layer):
    """Return ``layer`` and all layers inside it, each once."""
    return list(layer._flatten_layers())


def set_layer_policy(layer, policy):
    """Give ``layer`` alone another dtype policy.

    The public setter writes into a ``DTypePolicyMap`` that several layers may share.
    """
    layer._dtype_policy = policy


def is_of_keras(layer):
    """Return whether the class of ``layer`` is one of Keras's own."""
    return type(layer).__module__.split(".")[0] == "keras"


def is_code_of_keras(method):
    """Return whether Keras, or keras_mp, wrote ``method``, a function of a class."""
    module = getattr(method, "__module__", None) or __name__  # a property has none
    return module.split(".")[0] in ("keras", "keras_mp")


def has_own_call(layer):
    """Return whether calling ``layer`` runs code of the user's own.

    So it is with Keras's layers around a function, a SavedModel or a foreign module.
    """
    if is_subclass_of_the_users(layer):
        return True
    names = ("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper")
    kinds = (getattr(keras.layers, name, None) for name in names)
    return isinstance(layer, tuple(filter(None, kinds)))


def is_subclass_of_the_users(layer):
    """Return whether the class of ``layer`` has a ``call`` of the user's own."""
    return not is_code_of_keras(type(layer).call)


def is_foreign(layer):
    """Return whether ``layer`` runs a SavedModel, whose dtypes nobody can change."""
    return isinstance(layer, getattr(keras.layers, "TFSMLayer", ()))


def has_graph(layer):
    """Return whether ``layer`` runs a graph of layers: Functional or Sequential."""
    graphs = keras.Sequential, keras.Function
    return isinstance(layer, graphs) and is_code_of_keras(type(layer).call)


@functools.cache
def mentions(cls, names):
    """Return whether the user's own code in the class ``cls`` uses one of ``names``."""
    return any(
        inspect.isfunction(value) and _mentions(value.__code__, names)
        for base in cls.__mro__
        if not base.__module__.startswith("keras.")
        for value in vars(base).values()
    )


def _mentions(code, names):
    inner = (each for each in code.co_consts if inspect.iscode(each))
    return bool(names & {*code.co_names}) or any(_mentions(c, names) for c in inner)


def operations_of(function, *args, **kwargs):
    """Return the types of TensorFlow's operations that ``function`` uses, as a set.

    It is traced with tensors of these shapes and dtypes and not run. None if it cannot
    be traced so, or with another backend.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    def spec(leaf):
        return tf.TensorSpec(leaf.shape, leaf.dtype) if tf.is_tensor(leaf) else leaf

    try:
        traced = tf.function(function, autograph=False).get_concrete_function(
            *tf.nest.map_structure(spec, args), **tf.nest.map_structure(spec, kwargs)
        )
    except Exception:
        return None
    graph = traced.graph.as_graph_def()
    bodies = [graph.node, *(inner.node_def for inner in graph.library.function)]
    return {node.op for body in bodies for node in body}


def metrics_of(layer):
    """Return the metrics that ``layer`` itself holds, without those of sublayers."""
    return list(layer._metrics)


def stored_dtype(variable):
    """Return the dtype in which ``variable`` is stored, whatever it is read in."""
    return keras.backend.standardize_dtype(variable._dtype)


def values_of(variables):
    """Return the present values of ``variables``, on this replica, as tensors.

    Values are shared, not copied, until a variable is assigned. `keras.ops` hands a
    TensorFlow variable back instead of reading it.
    """
    if keras.backend.backend() != "tensorflow":
        return [keras.ops.copy(variable) for variable in variables]
    import tensorflow as tf

    return [tf.convert_to_tensor(variable.value) for variable in variables]


def message_of(error):
    """Return what ``error`` says, without the arguments that Keras adds to it."""
    message = str(error).split("Arguments received by")[0]
    message = re.sub(r"\x1b\[\d+m", "", message).strip()
    return message.split("\n\n", 1)[-1].strip()


def summary_of(error):
    """Return the first line of what ``error`` says, without its full stop."""
    return message_of(error).splitlines()[0][:200].rstrip(".")


_LOW_NAMES = re.compile(r"float16|\bhalf\b|DT_HALF|DT_BFLOAT16")
_OTHERS = re.compile(
    r"float32|float64|\bfloat\b|complex|allowed values|OpKernel|Unsupported|not inexact"
)


def is_dtype_error(error):
    """Return whether ``error`` says that dtypes do not match, one being of 16 bits."""
    kinds = [TypeError, ValueError]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        kinds += [
            tf.errors.InvalidArgumentError,
            tf.errors.NotFoundError,
            tf.errors.UnimplementedError,
        ]
    message = message_of(error)
    return (
        isinstance(error, tuple(kinds))
        and bool(_LOW_NAMES.search(message))
        and bool(_OTHERS.search(re.sub(r"b?float16", "", message)))
    )


def without_kernel(model, error):
    """Return the layer in ``model`` that an operation without a kernel is part of.

    TensorFlow finds out only as a step is about to run, and names the node. None if
    ``error`` is another one.
    """
    node = re.search(r"No OpKernel was registered.*node ([^\s}]+)", str(error), re.S)
    if node is None:
        return None
    names = [re.sub(r"_\d+$", "", name) for name in node[1].split("/")]
    layers = [layer for layer in walk(model) if has_own_call(layer)]
    inside = [each for each in layers if re.sub(r"_\d+$", "", each.name) in names]
    return inside[-1] if inside else None


_LIBRARIES = [
    os.path.dirname(module.__file__) + os.sep
    for module in (keras, sys.modules[__name__.split(".")[0]])
]


def is_library(filename):
    """Return whether a source file is keras_mp's or an installed package's."""
    parts = filename.replace(os.sep, "/").split("/")
    installed = {"site-packages", "dist-packages"} & {*parts}
    return bool(installed) or filename.startswith(tuple(_LIBRARIES))


def own_variables(layer):
    """Return the variables of ``layer`` itself, without those of its sublayers."""
    return layer._trainable_variables + layer._non_trainable_variables


def retype(variable, dtype):
    """Give ``variable`` another dtype, its value cast.

    A Keras variable has its dtype for good. This is how a variable that is created
    without a value gets one, on every backend.
    """
    value = keras.ops.cast(variable.value, dtype)
    variable._dtype = dtype
    variable._initialize(value)


def forget_compiled(model):
    """Have ``model`` ask to be compiled again."""
    model.optimizer = None
    model.compiled = False


def exchange_optimizer(model, old, new):
    """Have the compiled ``model`` train with the optimizer ``new`` instead of ``old``.

    Where its own ``compile`` keeps ``old``, or the optimizer inside, under other names,
    it finds ``new`` there too. It is saved as if ``compile`` had been given ``new``:
    only a private record of Keras's tells how a model was compiled.
    """
    if new is old:
        return
    replaced = (old, getattr(old, "inner_optimizer", old))
    for name, value in list(vars(model).items()):
        if any(value is each for each in replaced):
            setattr(model, name, new)
    model._compile_config.config["optimizer"] = new


def place_of(layer):
    """Return the path of ``layer`` if it has been built, else its name."""
    return layer.__dict__.get("_path") or layer.name


_HOOK = "_keras_mp_handlers"


def layer_hook(choose, attached, assigned):
    """Have policies chosen per layer: as a layer gets one, its path, or a sublayer.

    Keras looks a policy up without saying for which layer, and knows a path only for
    layers that are built with weights, so that rules on a ``Softmax`` or an
    ``Activation`` could never match. ``_setattr_hook`` is the seam Keras has for such
    needs: it sees whatever is stored on a layer. It is replaced once in a process,
    whatever modules are reloaded; a second call replaces the handlers only.

    Args:
        choose: ``choose(layer, policy, path, attribute) -> policy``, called when
            ``layer`` is about to get ``policy`` as that attribute, its own policy or
            the one around it, and when it learns its path.
        attached: ``attached(layer, sublayer)``, called when a layer is stored on
            another, alone or in a list, tuple or dict.
        assigned: ``assigned(layer, name, value) -> value``, called when ``layer`` is
            about to get any other attribute.

    Returns:
        Whether this Keras has the hook.
    """
    base = keras.layers.Layer
    handlers = choose, attached, assigned
    follow = getattr(base, "_setattr_hook", None)
    if follow is None:
        return False
    if hasattr(follow, _HOOK):
        getattr(follow, _HOOK)[:] = handlers
        return True
    current = list(handlers)

    def hook(self, name, value):
        name, value = follow(self, name, value)
        # A model may store its layers before it calls super().__init__().
        if name != "_dtype_policy" and "_dtype_policy" not in vars(self):
            return name, value
        choose, attached, assigned = current
        if name in ("_dtype_policy", "outer_policy"):
            return name, choose(self, value, place_of(self), name)
        if name == "_path" and value:
            set_layer_policy(
                self, choose(self, self._dtype_policy, value, "_dtype_policy")
            )
        value = assigned(self, name, value)
        for sublayer in _layers_in(value):
            if "_dtype_policy" in vars(sublayer):
                attached(self, sublayer)
        return name, value

    setattr(hook, _HOOK, current)
    base._setattr_hook = hook
    return True


def _layers_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    values = value if isinstance(value, list | tuple) else [value]
    return [item for item in values if isinstance(item, keras.layers.Layer)]


def take_build_contract(build, source):
    """Make ``build``, a method Keras has wrapped, look like the method ``source``.

    Keras reads from the signature which shapes to pass, and from a mark whether to
    build a layer by calling it instead.
    """
    build.__signature__ = inspect.signature(source)
    build._is_default = getattr(source, "_is_default", False)


def cast_with_masks(structure, dtype):
    """Return ``structure`` with float tensors cast, and the masks on them kept."""

    def cast(leaf):
        if not (keras.ops.is_tensor(leaf) and keras.backend.is_float_dtype(leaf.dtype)):
            return leaf
        return cast_with_mask(leaf, dtype)

    return keras.tree.map_structure(cast, structure)


def cast_with_mask(tensor, dtype):
    """Return ``tensor``, symbolic or not, cast, and the mask on it kept.

    `keras.ops.cast` drops the mask, and Keras 3.12 does so in its own casts too.
    """
    return with_mask_of(tensor, keras.ops.cast(tensor, dtype))


def with_mask_of(source, tensor):
    """Return ``tensor`` with the mask that Keras keeps on ``source``, if any."""
    mask = getattr(source, "_keras_mask", None)
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def with_logits_of(source, tensor):
    """Return ``tensor``, a cast of ``source``, with the logits that losses look for.

    Keras keeps on the result of a sigmoid or softmax what it was computed from.
    """
    logits = getattr(source, "_keras_logits", None)
    if logits is not None and not hasattr(tensor, "_keras_logits"):
        tensor._keras_logits = keras.ops.cast(logits, tensor.dtype)
    return tensor


def variables_as_stored():
    """Return a context in which variables are read in the dtype they have.

    In a layer's ``call`` Keras casts what is read to the layer's compute dtype. It
    changes that for a whole layer only.
    """
    return variables_read_in(None)


def variables_read_in(dtype):
    """Return a context in which float variables are read in ``dtype``.

    Keras enters such a scope for layers of a mixed policy only, and exports no name
    for it.
    """
    modules = (sys.modules[base.__module__] for base in keras.Variable.__mro__)
    scopes = (getattr(module, "AutocastScope", None) for module in modules)
    return next(filter(None, scopes))(dtype)


def forget_dtypes(model):
    """Have ``model`` act on the policies of its layers as they are now.

    Keras keeps what ``fit``, ``evaluate`` and ``predict`` have traced.
    """
    model.train_function = model.test_function = model.predict_function = None
    if isinstance(model, keras.Sequential):
        widen_made_input(model._layers)


#: The attribute in which a ``Sequential`` model stores the input that it makes.
SEQUENTIAL_LAYERS = "_layers"


def widen_made_input(layers):
    """Have a ``Sequential`` model of ``layers`` take its input in float32.

    One that makes its own input makes it in the compute dtype of its first layer, and
    goes on rounding to it.
    """
    for first in layers[:1]:
        if isinstance(first, keras.layers.InputLayer) and first.dtype in LOW_PRECISION:
            first._dtype = first.output._dtype = "float32"


def build_for(model, data):
    """Create the variables of ``model``, its metrics and its optimizer for ``data``.

    Keras does it before ``fit`` under a strategy only; eager steps create variables
    as they go. A model without a usable ``call`` cannot be built from its data; its
    own ``train_step`` knows how.
    """
    with contextlib.suppress(RuntimeError):
        model._symbolic_build(data_batch=data)


def reporting_metrics(model):
    """Return each metric of ``model`` that reports, with those that count for it.

    Public ``metrics`` has all that were given to ``compile`` as one, which lists them
    from the first batch on; those given as objects have their variables before.

    Returns:
        A list of pairs: a metric, and a list of metrics, itself for most.
    """
    compiled = getattr(model, "_compile_metrics", None)
    return [
        (metric, _compiled_metrics(metric) if metric is compiled else [metric])
        for metric in model.metrics
    ]


def _compiled_metrics(compiled):
    if compiled.built:
        return compiled.metrics
    given = keras.tree.flatten(
        (compiled._user_metrics, compiled._user_weighted_metrics)
    )
    return [each for each in given if isinstance(each, keras.metrics.Metric)]


def strategy_of(model):
    """Return the ``tf.distribute`` strategy ``model`` was created under, or None.

    Public ``distribute_strategy`` answers with the strategy of the present scope for a
    model that has none. Keras's other backends have no strategies.
    """
    return getattr(model, "_distribute_strategy", None)


def build_from(model, batches):
    """Have ``model`` build itself under its strategy from what ``batches`` yields.

    Keras's ``_maybe_symbolic_build`` makes one batch of the replicas' shares in a way
    that needs shares of equal size on one machine. ``_symbolic_build``, which it leads
    to, takes an iterator too, and draws from it only if anything is unbuilt. A model
    without a ``call``, such as a GAN, it cannot build, and `fit` would end there.

    Args:
        model: A Keras model that was created under a strategy.
        batches: ``batches(epoch_iterator)``, a generator that yields as it does,
            with lists of batches that have a shape and a dtype.
    """

    def build(iterator=None, data_batch=None):
        if type(model).call is keras.Model.call:
            return
        with strategy_of(model).scope():
            if iterator is not None:
                iterator = batches(iterator)
            model._symbolic_build(iterator=iterator, data_batch=data_batch)

    model._maybe_symbolic_build = build


def run_steps_with(model, choose, mark):
    """Have ``choose(make)`` replace what ``fit`` and ``evaluate`` call to execute.

    Keras keeps it as ``train_function`` and ``test_function``, and makes both anew in
    ``_make_function``. ``make()`` makes it as well: given an iterator, it runs
    ``steps_per_execution`` steps; given a list, a step for each batch in it. Does
    nothing the second time with the same ``mark``.
    """
    make = model._make_function
    marks = getattr(make, "_keras_mp_chooses", ())
    if mark in marks:
        return

    def chosen(step):
        return choose(functools.partial(make, step))

    chosen._keras_mp_chooses = (*marks, mark)
    model._make_function = chosen


def epoch_ends(model, ended):
    """Return a context in which ``ended()`` is called as an epoch of ``fit`` ends.

    Before its validation and its callbacks. Keras then reads the metrics by a method of
    its own, and so it does where ``evaluate`` ends. A callback would be public, but a
    ``fit`` that was overridden need not take any.
    """
    read = model._get_metrics_result_or_logs

    def end_and_read(logs):
        ended()
        return read(logs)

    return replaced(model, _get_metrics_result_or_logs=end_and_read)


def step_counter(optimizer):
    """Return the variable that counts the gradients ``optimizer`` was given.

    Public ``iterations`` counts updates, of which accumulation makes fewer.
    """
    return optimizer._iterations


def learning_rate_schedule(optimizer):
    """Return the schedule that ``optimizer`` was given, or None.

    Public ``learning_rate`` is its present value.
    """
    schedule = optimizer._learning_rate
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    return schedule if is_schedule else None


def accumulators(optimizer, variables):
    """Return the variables in which ``optimizer`` sums the gradients of ``variables``.

    Raises:
        ValueError: ``optimizer`` was built before it was told to accumulate.
    """
    if not hasattr(optimizer, "_accumulated_gradients"):
        raise ValueError(
            f"Optimizer '{optimizer.name}' was built without accumulators, and "
            f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps} was "
            "set afterwards. Pass it to the optimizer's constructor."
        )
    index = optimizer._get_variable_index
    return [optimizer._accumulated_gradients[index(v)] for v in variables]


@contextlib.contextmanager
def replaced(owner, **attributes):
    """Give the object ``owner`` attributes of its own; afterwards what it had."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            delattr(owner, name)
        for name, value in before.items():
            setattr(owner, name, value)


def updating_parts(optimizer):
    """Return the optimizers that update variables in the name of ``optimizer``.

    Itself, or the parts of a `keras.optimizers.MultiOptimizer`, whose list of them is
    not documented.
    """
    return list(getattr(optimizer, "optimizers", ())) or [optimizer]


def updates_as(optimizer, cls):
    """Return whether ``optimizer`` updates a variable with the very code of ``cls``."""
    names = ("update_step", "assign", "assign_add", "assign_sub")
    return not any(name in vars(optimizer) for name in names) and all(
        getattr(type(optimizer), name) is getattr(cls, name) for name in names
    )


@contextlib.contextmanager
def updating_by(optimizer, update, update_one):
    """Have ``optimizer.apply`` change variables by ``update`` and ``update_one``.

    Keras's public ``update_step`` changes one variable at a time, and under a strategy
    in a context of its own; ``_backend_update_step`` gets all of them, in the replica.

    Args:
        optimizer: A Keras optimizer without parts.
        update: ``update(keras_update, gradients, variables, learning_rate)`` with the
            backend's variables; ``keras_update`` takes the last three and does what
            Keras would.
        update_one: ``update_one(update_step, gradient, variable, learning_rate)``, used
            by ``keras_update``.
    """
    keras_update, update_step = optimizer._backend_update_step, optimizer.update_step

    def update_all(gradients, variables, learning_rate):
        variables = [getattr(variable, "value", variable) for variable in variables]
        update(keras_update, gradients, variables, learning_rate)

    with replaced(
        optimizer,
        _backend_update_step=update_all,
        update_step=functools.partial(update_one, update_step),
    ):
        yield


def slots(optimizer, variable, names):
    """Return the optimizer's variables that belong to ``variable``.

    Args:
        optimizer: A built Keras optimizer.
        variable: A variable, Keras's or the backend's.
        names: Names of the attributes that list such variables, one an item.

    Returns:
        A list of the backend's variables. Keras names none of them in public.
    """
    index = optimizer._get_variable_index(variable)
    return [getattr(optimizer, name)[index].value for name in names]


@contextlib.contextmanager
def update_only(optimizer):
    """Have ``optimizer.apply`` take gradients as final: all summed, all accumulated.

    Keras has no public switch for it. Its all-reduce would be the second one, and its
    accumulation and its overwriting by averages meet all replicas inside a ``cond``,
    which crashes under a strategy. Averages are the same on every replica, so that
    each can assign its own.

    Raises:
        ValueError: A part of a `keras.optimizers.MultiOptimizer` accumulates.
    """
    steps = optimizer.gradient_accumulation_steps
    parts = [optimizer, *getattr(optimizer, "optimizers", ())]
    for part in parts[1:]:
        if part.gradient_accumulation_steps:
            raise ValueError(
                f"Optimizer '{part.name}', a part of '{optimizer.name}', has "
                f"gradient_accumulation_steps={part.gradient_accumulation_steps}. Set "
                f"it on '{optimizer.name}' itself before it is built, for all parts."
            )
    optimizer.gradient_accumulation_steps = None
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, optimizer, "gradient_accumulation_steps", steps)
        for part in parts:
            final = replaced(
                part,
                _all_reduce_sum_gradients=lambda grads_and_vars: grads_and_vars,
                _overwrite_model_variables_with_average_value=functools.partial(
                    _overwrite_by_averages, part
                ),
            )
            stack.enter_context(final)
        yield


def _overwrite_by_averages(optimizer, variables):
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(variables, averages, strict=True):
        if average is not None:
            variable.assign(average)


def as_written(function):
    """Keep AutoGraph from rewriting ``function`` in a user's ``tf.function``.

    It spares TensorFlow's and Keras's code, but not that of others.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def in_xla():
    """Return whether this code is being traced for XLA; nothing public tells."""
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() == "jax"
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def batch_normalized(inputs, gamma, beta, epsilon):
    """Return ``inputs``, normalized over all axes but the last, by one kernel.

    `keras.ops` has none. It is cuDNN's on a GPU and oneDNN's on a CPU, and computes in
    float32 whatever ``inputs`` are in (Ioffe and Szegedy, 2015).

    Args:
        inputs: float16, bfloat16 or float32 tensor of shape (..., channels).
        gamma: float32 tensor or variable of shape (channels,).
        beta: As ``gamma``.
        epsilon: float.

    Returns:
        A tensor like ``inputs``, and their mean and variance over all axes but the
        last, float32 tensors of shape (channels,) that pass no gradient on.
    """
    import tensorflow as tf

    channels = inputs.shape[-1]
    rows = inputs
    if len(inputs.shape) != 4:
        # As one tall image: cuDNN takes up to 50 times as long for a batch of small
        # ones, and its variance is less exact.
        rows = tf.reshape(inputs, (1, -1, 1, channels))
    outputs, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=rows,
        scale=tf.convert_to_tensor(gamma),
        offset=tf.convert_to_tensor(beta),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
    )
    count = tf.cast(tf.size(inputs) // channels, "float32")
    # Of a single number, cuDNN's is 0 times infinity.
    variance = tf.math.multiply_no_nan(unbiased, (count - 1) / count)
    if rows is not inputs:
        outputs = tf.ensure_shape(tf.reshape(outputs, tf.shape(inputs)), inputs.shape)
    return outputs, mean, variance


def stacked(variables):
    """Return this replica's values of ``variables``, which have one shape, stacked."""
    import tensorflow as tf

    return tf.stack(
        [
            tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
            for variable in variables
        ]
    )


def add_to(variables, changes):
    """Add the items of ``changes``, a stacked tensor, to TensorFlow ``variables``.

    Under a strategy to this replica's only, whatever their aggregation.
    """
    import tensorflow as tf

    for variable, change in zip(variables, tf.unstack(changes), strict=True):
        tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=change)


def is_only_on_cpus():
    """Return whether TensorFlow computes, and has nothing but CPUs."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def cond(condition, if_true, if_false):
    """Do what `keras.ops.cond` does, in one node however many tensors enter it.

    TensorFlow turns a branch into a Switch for each tensor that enters it, which for
    hundreds of gradients and variables takes longer than what the branch does. It
    leaves the If as it is where functions are traced for its single-threaded executor,
    which has no Switch; the public setting of that executor is what asks for it here.
    Calls inside the branches are traced as always.

    An If is done on one device. So this is not for branches that reach several, and
    where there is a GPU, to whose variables some on the CPU come, it is Keras's own.
    """
    if not is_only_on_cpus():
        return keras.ops.cond(condition, if_true, if_false)
    import tensorflow as tf

    executor = tf.experimental.function_executor_type

    def usual(branch):
        with executor(""):
            return branch()

    with executor("SINGLE_THREADED_EXECUTOR"):
        return keras.ops.cond(
            condition,
            functools.partial(usual, if_true),
            functools.partial(usual, if_false),
        )


def before_cast(tensor):
    """Return the float16 or bfloat16 tensor that ``tensor`` was cast from, or itself.

    It holds the same numbers in less memory: a cast from bfloat16 to float16, which may
    overflow, is none of these. A cast whose result nobody uses is not run at all.
    """
    operation = _operation(tensor)
    if operation is None or operation.type != "Cast":
        return tensor
    (source,) = operation.inputs
    widened = source.dtype.is_floating and source.dtype.size == 2 < tensor.dtype.size
    return source if widened else tensor


def before_unstack(first, *others):
    """Return the tensor that ``first`` was unstacked from, or None.

    Args:
        first: A tensor.
        *others: If there are any, all tensors must be of one unstacking and all of it.
    """
    operation = _operation(first)
    if operation is None or operation.type != "Unpack" or operation.get_attr("axis"):
        return None
    outputs = operation.outputs
    if others and list(map(id, outputs)) != list(map(id, (first, *others))):
        return None
    return operation.inputs[0]


#: TensorFlow's operations that move numbers and change none.
_MOVES = {
    "BroadcastTo",
    "ConcatV2",
    "ExpandDims",
    "GatherV2",
    "Identity",
    "Pack",
    "Reshape",
    "ReverseV2",
    "Slice",
    "Split",
    "SplitV",
    "Squeeze",
    "StopGradient",
    "StridedSlice",
    "Tile",
    "Transpose",
    "Unpack",
}


def before_rounding(tensor, known):
    """Return the numbers of ``tensor`` before they were rounded to 16 bits, or None.

    In a graph that is being traced, TensorFlow knows what a tensor was cast from. If it
    was sliced, reshaped or joined since, the same is done to the source. Eager tensors
    do not tell.

    Args:
        tensor: A tensor.
        known: ``known(tensor)`` returns the source of one of which it is known
            otherwise, or None.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    source = known(tensor)
    if source is not None:
        return source
    operation = _operation(tensor)
    if operation is None or not tensor.dtype.is_floating:
        return None
    if operation.type == "Cast":
        (source,) = operation.inputs
        if not source.dtype.is_floating:
            return None
        if source.dtype.size > tensor.dtype.size == 2:
            return source
        return before_rounding(source, known) if source.dtype.size == 2 else None
    if operation.type not in _MOVES:
        return None
    inputs = list(operation.inputs)
    moved = [before_rounding(each, known) for each in inputs]
    if all(each is None for each in moved):
        return None
    return _again(operation, inputs, moved)[tensor.value_index]


def _again(operation, inputs, moved):
    """Return the outputs of ``operation`` on what is ``moved`` of its ``inputs``."""
    import tensorflow as tf

    sources = [
        given if source is None else source
        for given, source in zip(inputs, moved, strict=True)
    ]
    # What is joined with a float32 tensor is in float32 as well.
    sources = [
        tf.cast(source, "float32")
        if source.dtype.is_floating and source.dtype.size == 2
        else source
        for source in sources
    ]
    function = getattr(tf.raw_ops, operation.type)
    parameters = inspect.signature(function).parameters
    definition, arguments, inferred = operation.op_def, {}, set()
    for argument in definition.input_arg:
        inferred |= {argument.type_attr, argument.number_attr}
        if argument.number_attr:
            count = operation.get_attr(argument.number_attr)
            arguments[argument.name], sources = sources[:count], sources[count:]
        else:
            arguments[argument.name], *sources = sources
    attributes = {
        attribute.name: operation.get_attr(attribute.name)
        for attribute in definition.attr
        if attribute.name not in inferred
    }
    # The functions call "axis" what operations call "dim", "split_dim" and the like.
    outputs = function(
        **{
            name if name in parameters else "axis": value
            for name, value in {**arguments, **attributes}.items()
        }
    )
    return outputs if isinstance(outputs, list) else [outputs]


def is_traced():
    """Return whether TensorFlow traces a graph now, which tells what reads a tensor."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def in_graph(function):
    """Return ``function`` that is traced as a graph of TensorFlow and run as such."""
    if keras.backend.backend() != "tensorflow":
        return lambda *args: None
    import tensorflow as tf

    return tf.function(function, autograph=False)


def _operation(tensor):
    """Return what computes ``tensor`` in the graph that is being traced, or None."""
    import tensorflow as tf

    traced = isinstance(tensor, tf.Tensor) and not tf.executing_eagerly()
    return getattr(tensor, "op", None) if traced else None


def cast_here(gradient):
    """Return a dense ``gradient``, cast once more if it comes from a narrower dtype.

    XLA writes each input of a branch to memory first. The narrow tensor is in memory
    already, and takes half the space; its cast becomes part of the operation that reads
    it inside the branch.
    """
    import tensorflow as tf

    source = before_cast(gradient)
    return gradient if source is gradient else tf.cast(source, gradient.dtype)


def raise_if(condition, message):
    """Make the step that computes ``condition`` fail if it is true.

    Under ``jit_compile=True`` XLA drops such checks and training goes on.

    Raises:
        tf.errors.InvalidArgumentError: With ``message``, when the step runs.
    """
    import tensorflow as tf

    tf.debugging.Assert(tf.logical_not(condition), [message])


@contextlib.contextmanager
def attributes_for_now(changes):
    """Give objects other attributes inside the block.

    Past their ``__setattr__``, which would track values and apply the rules of
    policies, so that afterwards everything is the very object it was.

    Args:
        changes: Pairs of an object and the attributes it is to have, as a dict; the
            object must have them already.
    """
    changes = list(changes)
    before = [{name: vars(owner)[name] for name in new} for owner, new in changes]
    try:
        for owner, new in changes:
            vars(owner).update(new)
        yield
    finally:
        for (owner, _), old in zip(changes, before, strict=True):
            vars(owner).update(old)


def policy_as(layer, policy):
    """Yield what to change, as of `attributes_for_now`, for ``layer`` to have it."""
    yield layer, {"_dtype_policy": policy}


def losses_apart(layer):
    """Yield what to change for ``layer`` to collect losses in another list."""
    yield layer, {"_losses": list(layer._losses)}


def input_in(layer, dtype):
    """Yield what to change for a low-precision ``InputLayer`` to be of ``dtype``.

    A Functional model casts what it is given to the dtype of this layer's output.
    """
    if layer.dtype in LOW_PRECISION:
        yield layer, {"_dtype": dtype}
        yield layer.output, {"_dtype": dtype}


def operations_in(layer, dtype):
    """Yield what to change for low-precision operations of a graph to give ``dtype``.

    `keras.ops.cast(mask, x.dtype)` in the graph of a Functional model is an operation
    that keeps the dtype which ``x`` had then. No setter is public.
    """
    for operation in getattr(layer, "operations", ()):
        is_layer = isinstance(operation, keras.layers.Layer)
        if not is_layer and vars(operation).get("dtype") in LOW_PRECISION:
            yield operation, {"dtype": dtype}
