"""The step that `fit` would run, as a graph: traced on a copy of the model.

The variables of the copy are symbols in a graph, which take no memory, whatever the
model's size. The optimizer and the policy are those asked for, so that the step is the
real one, with its casts, its loss scaling and its updates.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from keras_mp import kinds, policies, private, training

if TYPE_CHECKING:
    import tensorflow as tf

_NO_COPY = (
    "keras_mp.memory_report() traces a copy of model '{}', and it cannot be made from "
    "its config, without values for its variables. The error is at the end. Give its "
    "class get_config() and from_config(), register what is custom with "
    "@keras.saving.register_keras_serializable(), and make variables by add_weight(). "
    "Keras says: {}"
)
_NEEDS_DATA = (
    "keras_mp.memory_report() needs to know the shape of a batch, and the model gives "
    "{}. Pass a batch that it trains on, of any size, as data=(x, y)."
)


class Recipe(NamedTuple):
    """How to make a model again.

    Attributes:
        config: What Keras serializes the model as.
        classes: Its layers' classes that are not Keras's, by name.
        policy: Its dtype policy.
    """

    config: dict[str, Any]
    classes: dict[str, type]
    policy: keras.DTypePolicy


def recipe(model: keras.Model) -> Recipe:
    """Return the `Recipe` to make ``model`` again.

    Raises:
        ValueError: The model has no config.
    """
    try:
        config: Any = keras.saving.serialize_keras_object(model)
    except NotImplementedError as error:
        raise ValueError(_NO_COPY.format(model.name, error)) from error
    config.pop("compile_config", None)
    classes = {type(layer) for layer in private.layers.walk(model)}
    own = {c.__name__: c for c in classes if c.__module__.split(".")[0] != "keras"}
    return Recipe(config, own, policies.policy_of(model))


def _copy(graph: tf.Graph, recipe: Recipe) -> Any:
    """Make the model again, in this thread, with its variables in ``graph``.

    Its constructors run outside the graph, where they may read values; variables have
    no values there, and are created when the outer block ends. If this fails, as it
    does for a `keras.Variable` made of a value, the whole model is made in the graph.
    """
    keras.config.set_dtype_policy(recipe.policy)  # containers do not save theirs

    def make() -> Any:
        config = copy.deepcopy(recipe.config)  # Keras changes it while it reads it
        return keras.saving.deserialize_keras_object(
            config, recipe.classes, safe_mode=False
        )

    try:
        with contextlib.ExitStack() as later, keras.StatelessScope():
            try:
                return make()
            finally:
                later.enter_context(_in(graph))
    except Exception as error:
        try:
            with _in(graph):
                return make()
        except Exception:
            config = recipe.config
            name = config["config"].get("name", config["class_name"])
            raise ValueError(_NO_COPY.format(name, error)) from error


@contextlib.contextmanager
def _in(graph: tf.Graph) -> Iterator[None]:
    """Trace the block into ``graph``, on the device to train on."""
    import tensorflow as tf

    # The updates of `keras_mp.fused` depend on the device of the variables.
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    with graph.as_default(), tf.device(device):
        yield


def specs_of(model: keras.Model, batch_size: int, loss: Any, data: Any) -> Any:
    """Return the batch (x, y) as specs with ``batch_size`` rows.

    Raises:
        ValueError: ``data`` is None and the model does not tell all shapes.
    """
    import tensorflow as tf

    if data is None:
        data = _data_of(model, loss)

    def spec(array: Any) -> tf.TensorSpec:
        shape = (batch_size, *array.shape[1:])
        if None in shape:
            raise ValueError(_NEEDS_DATA.format(f"a shape of {tuple(array.shape)}"))
        return tf.TensorSpec(shape, array.dtype)

    return keras.tree.map_structure(spec, data)


def _data_of(model: keras.Model, loss: Any) -> tuple[Any, ...]:
    """Return symbolic inputs and targets, as far as the model tells them."""
    if not getattr(model, "inputs", None):
        raise ValueError(_NEEDS_DATA.format("none"))
    if isinstance(model, keras.Sequential):
        inputs, outputs = model.inputs[0], model.outputs[0]
    else:
        inputs, outputs = model.input, model.output
    if loss is None:
        return (inputs,)
    losses = keras.tree.flatten(loss)

    def target(output: Any, loss: Any) -> keras.KerasTensor:
        name = getattr(loss, "name", None) or getattr(loss, "__name__", str(loss))
        if "sparse" in name:
            return keras.KerasTensor(output.shape[:-1], "int32")
        return keras.KerasTensor(output.shape, "float32")

    flat = keras.tree.flatten(outputs)
    if len(losses) != len(flat):
        losses = losses[:1] * len(flat)
    targets = [target(*pair) for pair in zip(flat, losses, strict=True)]
    return inputs, keras.tree.pack_sequence_as(outputs, targets)


def trace(
    recipe: Recipe,
    specs_for: Callable[[Any], Any],
    policy: keras.DTypePolicy | str | None,
    compiled: dict[str, Any] | None,
    arguments: dict[str, Any],
) -> tuple[Any, set[str], dict[str, tuple[str, int]]]:
    """Trace one training step of a copy of the model.

    Args:
        recipe: How to make the copy.
        specs_for: ``specs_for(loss)`` returns the batch as specs.
        policy: As for `memory_report`.
        compiled: What `compiled_state` returns, to be set instead of calling the
            model's own ``compile``; or None.
        arguments: What to compile the copy with, by name; optimizers as configs.

    Returns:
        The traced function, the names of the gradients in it, and a dict with the part
        ("weights" or "optimizer_state") and the bytes of each variable by the name of
        its handle.
    """
    import tensorflow as tf

    gradients: set[str] = set()
    random_state = random.getstate()  # initializers without a seed draw one
    graph = tf.Graph()
    try:
        model = _copy(graph, recipe)
        with _in(graph):
            if compiled is not None:
                model.compile = functools.partial(keras.Model.compile, model)
                for name, value in compiled.items():
                    setattr(model, name, value)
            training.compile(model, policy=policy, **_made(arguments))
            _record_gradients(model.optimizer, gradients)
            step = tf.function(lambda *data: model.train_step(data))
            step = step.get_concrete_function(*specs_for(model.loss))
    finally:
        random.setstate(random_state)
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


class OptimizerConfig:
    """How to make an optimizer again, in the graph in which the step is traced."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self._config = keras.saving.serialize_keras_object(optimizer)

    def make(self) -> Any:
        """Return an optimizer with variables of its own."""
        return keras.saving.deserialize_keras_object(copy.deepcopy(self._config))


def _made(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return ``arguments`` with optimizers in place of their configs."""
    return {
        name: value.make() if isinstance(value, OptimizerConfig) else value
        for name, value in arguments.items()
    }


def has_own_compile(model: keras.Model) -> bool:
    """Return whether the class of ``model`` overrides ``compile``."""
    return type(model).compile is not keras.Model.compile


def compiled_state(model: keras.Model) -> dict[str, Any]:
    """Return the attributes that a model's own ``compile`` has set, as a dict.

    The arguments of that call are not stored anywhere. So a copy of the model gets what
    ``compile`` made of them: these attributes, and the arguments that it passed on to
    Keras's ``compile``. Optimizers are left out: their variables belong to the model.
    """
    stored = set()
    for cls in type(model).__mro__:
        if "compile" in vars(cls) and cls.__module__.split(".")[0] != "keras":
            code = dis.get_instructions(inspect.unwrap(cls.compile))
            stored |= {each.argval for each in code if each.opname == "STORE_ATTR"}
    return {
        name: value
        for name, value in vars(model).items()
        if name in stored and not isinstance(value, keras.optimizers.Optimizer)
    }


def _record_gradients(optimizer: Any, names: set[str]) -> None:
    """Make ``optimizer`` add the names of the gradients that it gets to ``names``."""
    apply = optimizer.apply

    def recording(gradients: Any, *args: Any, **kwargs: Any) -> Any:
        gradients = list(gradients)
        for gradient in kinds.dense_parts(gradients):
            names.update({gradient.name, private.tracing.before_cast(gradient).name})
        return apply(gradients, *args, **kwargs)

    optimizer.apply = recording
