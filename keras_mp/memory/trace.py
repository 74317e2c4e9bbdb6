"""The step that `fit` would run, as a graph: traced on a copy of the model.

A copy made inside a graph has symbols for variables, which take no memory, whatever
the model's size. The optimizer and the policy are those asked for, so that the step
is the real one, with its casts, its loss scaling and its updates.
"""

import random

import keras

from keras_mp import numerics, policies, private, training


def recipe(model):
    """Return what makes ``model`` again: config, custom classes and policy."""
    try:
        config = keras.saving.serialize_keras_object(model)
    except NotImplementedError as error:
        raise ValueError(_NO_COPY.format(model.name, error)) from error
    config.pop("compile_config", None)
    classes = {type(layer) for layer in private.walk(model)}
    own = {c.__name__: c for c in classes if c.__module__.split(".")[0] != "keras"}
    return config, own, policies.policy_of(model)


def _copy(config, own, policy):
    """Make the model again, in this thread; containers do not save their policy."""
    keras.config.set_dtype_policy(policy)
    try:
        return keras.saving.deserialize_keras_object(config, own, safe_mode=False)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(_NO_COPY.format(config["config"]["name"], error)) from error


_NO_COPY = (
    "keras_mp.memory_report() traces a copy of model '{}', and it cannot be made from "
    "its config. Give its class get_config() and from_config(), and register what is "
    "custom with @keras.saving.register_keras_serializable(). Keras says: {}"
)


def specs_of(model, batch_size, loss, data):
    """Return the batch (x, y) as specs with ``batch_size`` rows."""
    import tensorflow as tf

    if data is None:
        data = _data_of(model, loss)

    def spec(array):
        shape = (batch_size, *array.shape[1:])
        if None in shape:
            raise ValueError(_NEEDS_DATA.format(f"a shape of {tuple(array.shape)}"))
        return tf.TensorSpec(shape, array.dtype)

    return keras.tree.map_structure(spec, data)


_NEEDS_DATA = (
    "keras_mp.memory_report() needs to know the shape of a batch, and the model gives "
    "{}. Pass a batch that it trains on, of any size, as data=(x, y)."
)


def _data_of(model, loss):
    """Return symbols of the inputs and the targets, as the model gives them."""
    if not getattr(model, "inputs", None):
        raise ValueError(_NEEDS_DATA.format("none"))
    if isinstance(model, keras.Sequential):
        inputs, outputs = model.inputs[0], model.outputs[0]
    else:
        inputs, outputs = model.input, model.output
    if loss is None:
        return (inputs,)
    losses = keras.tree.flatten(loss)

    def target(output, loss):
        name = getattr(loss, "name", None) or getattr(loss, "__name__", str(loss))
        if "sparse" in name:
            return keras.KerasTensor(output.shape[:-1], "int32")
        return keras.KerasTensor(output.shape, "float32")

    flat = keras.tree.flatten(outputs)
    if len(losses) != len(flat):
        losses = losses[:1] * len(flat)
    targets = [target(*pair) for pair in zip(flat, losses, strict=True)]
    return inputs, keras.tree.pack_sequence_as(outputs, targets)


def trace(recipe, specs, policy, optimizer, loss):
    """Trace one training step of a copy of the model.

    Returns:
        The traced function, the names of the gradients in it, and a dict with the part
        ("weights" or "optimizer_state") and the bytes of each variable by the name of
        its handle.
    """
    import tensorflow as tf

    gradients = set()
    state = random.getstate()  # initializers without a seed draw one
    try:
        # In a graph, variables are symbols. Updates ask on which device they are.
        with tf.Graph().as_default(), tf.device(_device()):
            model = _copy(*recipe)
            if not isinstance(optimizer, str):
                optimizer = keras.saving.deserialize_keras_object(optimizer)
            training.compile(model, optimizer, loss, policy=policy)
            _record_gradients(model.optimizer, gradients)
            step = tf.function(lambda *data: model.train_step(data))
            step = step.get_concrete_function(*specs)
    finally:
        random.setstate(state)
    state = {id(variable) for variable in model.optimizer.variables}
    variables = model.weights + model.optimizer.variables
    parts = {
        variable.value.handle.name: (
            "optimizer_state" if id(variable) in state else "weights",
            variable.value.shape.num_elements() * variable.value.dtype.size,
        )
        for variable in variables
    }
    return step, gradients, parts


def _device():
    """Return the name of the device that Keras trains on."""
    import tensorflow as tf

    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"


def _record_gradients(optimizer, names):
    """Add the names of the gradients that ``optimizer`` gets to ``names``."""
    apply = optimizer.apply

    def recording(gradients, *args, **kwargs):
        gradients = list(gradients)
        for gradient in numerics.dense_parts(gradients):
            names.update({gradient.name, private.before_cast(gradient).name})
        return apply(gradients, *args, **kwargs)

    optimizer.apply = recording
