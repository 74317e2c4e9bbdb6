"""The rules of a `Policy`: which are allowed, and how they are saved."""

import contextlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras

#: A rule: a layer class, or a regular expression on names and paths of layers.
Rule = str | type

_KERAS_MODULES = {"keras.layers": keras.layers, "keras": keras}


def checked_rules(name: str, rules: Iterable[Rule] | Rule) -> tuple[Rule, ...]:
    """Return ``rules``, one or several, as a tuple.

    Args:
        name: The argument of `Policy` that they were given as, for messages.
        rules: A rule, or an iterable of rules.

    Raises:
        TypeError: A rule is neither a string nor a layer class.
        ValueError: A rule is empty, or no regular expression.
    """
    several: Any = (rules,)
    if isinstance(rules, Iterable) and not isinstance(rules, str | Mapping):
        with contextlib.suppress(TypeError):  # of an array that has no dimension
            several = tuple(rules)
    return tuple(_checked_rule(name, rule) for rule in several)


def _checked_rule(name, rule):
    if inspect.isclass(rule) and issubclass(rule, keras.layers.Layer):
        return rule
    if not isinstance(rule, str):
        raise TypeError(
            f"Policy({name}=[...]): each rule must be a layer's name, a regular "
            f"expression or a layer class. Got {rule!r} of type "
            f"{type(rule).__name__}. For a single layer pass its name."
        )
    if not rule:
        raise ValueError(
            f"Policy({name}=['']): an empty rule matches no layer. Leave it out, or "
            "write '.*' for every layer."
        )
    try:
        re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"Policy({name}=[{rule!r}]): the rule is no regular expression "
            f"({error}). Write for example 'block_.*' for names that start with "
            f"block_, or {re.escape(rule)!r} for this very name."
        ) from error
    return rule


def config_of(rule: Rule) -> str | dict[str, str]:
    """Return a rule as JSON: Keras's own classes by module, others as registered."""
    if isinstance(rule, str):
        return rule
    for module, public in _KERAS_MODULES.items():
        if getattr(public, rule.__name__, None) is rule:
            return {"module": module, "class_name": rule.__name__}
    return {"registered_name": keras.saving.get_registered_name(rule)}


def from_config(
    config: str | dict[str, str], custom_objects: dict[str, Any] | None
) -> Rule:
    """Return the rule that `config_of` has saved.

    Raises:
        ValueError: It is a class that is not registered, or that Keras does not have.
    """
    if not isinstance(config, dict):
        return config
    if "module" in config:
        module = _KERAS_MODULES.get(config["module"])
        found = getattr(module, config["class_name"], None)
        if found is None:
            raise ValueError(
                f"A saved Policy keeps layers of class {config!r} in float32, and this "
                f"is Keras {keras.__version__}, which has no such layer. Update Keras, "
                "or save the model again."
            )
        return found
    name = config["registered_name"]
    found = keras.saving.get_registered_object(name, custom_objects)
    if found is None:
        raise ValueError(
            f"A saved Policy keeps layers of class '{name}' in float32, but no such "
            "class is known. Decorate it with "
            "@keras.saving.register_keras_serializable(), or pass custom_objects."
        )
    return found
