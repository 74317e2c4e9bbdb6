"""What Keras keeps private of a layer: its sublayers, its code, its policy."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras

_HOOK = "_keras_mp_handlers"


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the direct sublayers of ``layer``.

    Public ``Model.layers`` knows models only; attention, RNN and wrapper layers keep
    their sublayers in ``_layers``.
    """
    return list(layer._layers)


def walk(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return ``layer`` and all layers inside it, each once."""
    return list(layer._flatten_layers())


def with_paths(
    layer: keras.layers.Layer, path: str | None = None
) -> Iterator[tuple[keras.layers.Layer, str]]:
    """Yield each layer inside ``layer``, itself first, with its path.

    The path joins the names of the containers down to the layer, as the model is put
    together; unlike Keras's ``layer.path`` it is the same before and after the model
    is built, saved and loaded. A layer used in two places comes twice.
    """
    path = path or layer.name
    yield layer, path
    for inner in sublayers(layer):
        yield from with_paths(inner, f"{path}/{inner.name}")


def set_layer_policy(layer: keras.layers.Layer, policy: keras.DTypePolicy) -> None:
    """Give ``layer`` alone another dtype policy.

    The public setter writes into a ``DTypePolicyMap`` that several layers may share.
    """
    layer._dtype_policy = policy


def is_of_keras(layer: keras.layers.Layer) -> bool:
    """Return whether the class of ``layer`` is one of Keras's own."""
    return type(layer).__module__.split(".")[0] == "keras"


def is_code_of_keras(method: Any) -> bool:
    """Return whether Keras, or keras_mp, wrote ``method``, a function of a class."""
    module = getattr(method, "__module__", None) or __name__  # a property has none
    return module.split(".")[0] in ("keras", "keras_mp")


def has_own_call(layer: keras.layers.Layer) -> bool:
    """Return whether calling ``layer`` runs code of the user's own.

    So it is with Keras's layers around a function, a SavedModel or a foreign module.
    """
    if is_subclass_of_the_users(layer):
        return True
    names = ("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper")
    kinds = (getattr(keras.layers, name, None) for name in names)
    return isinstance(layer, tuple(filter(None, kinds)))


def is_subclass_of_the_users(layer: keras.layers.Layer) -> bool:
    """Return whether the class of ``layer`` has a ``call`` of the user's own."""
    return not is_code_of_keras(type(layer).call)


def is_foreign(layer: keras.layers.Layer) -> bool:
    """Return whether ``layer`` runs a SavedModel, whose dtypes nobody can change."""
    return isinstance(layer, getattr(keras.layers, "TFSMLayer", ()))


@functools.cache
def mentions(cls: type, names: frozenset[str]) -> bool:
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


def metrics_of(layer: keras.layers.Layer) -> list[keras.Metric]:
    """Return the metrics that ``layer`` itself holds, without those of sublayers."""
    return list(layer._metrics)


def own_losses(layer: keras.layers.Layer) -> list[Any]:
    """Return the list, not a copy, in which ``layer`` collects losses of a call."""
    return layer._losses


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables of ``layer`` itself, without those of its sublayers."""
    return layer._trainable_variables + layer._non_trainable_variables


def has_call(model: keras.Model) -> bool:
    """Return whether ``model`` has a ``call``; a GAN may have a ``train_step`` only."""
    return type(model).call is not keras.Model.call


def state_of(model: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables that a call of ``model`` may change, each once.

    Keras does not count the states of a stateful RNN among ``variables``.
    """
    found = list(model.non_trainable_variables)
    known = {id(variable) for variable in found}
    for layer in walk(model):
        for state in keras.tree.flatten(getattr(layer, "states", None)):
            if isinstance(state, keras.Variable) and id(state) not in known:
                known.add(id(state))
                found.append(state)
    return found


def path_of(layer: keras.layers.Layer) -> str:
    """Return the path of ``layer`` if it has been built, else its name."""
    return layer.__dict__.get("_path") or layer.name


def layer_hook(choose: Callable, attached: Callable, assigned: Callable) -> bool:
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
            return name, choose(self, value, path_of(self), name)
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


def take_build_contract(build: Any, source: Any) -> None:
    """Make ``build``, a method Keras has wrapped, look like the method ``source``.

    Keras reads from the signature which shapes to pass, and from a mark whether to
    build a layer by calling it instead.
    """
    build.__signature__ = inspect.signature(source)
    build._is_default = getattr(source, "_is_default", False)
