"""What a rule is, and which layers it matches."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras


class When(NamedTuple):
    """A rule: layers of a class whose attribute passes a test."""

    layer: type
    attribute: str
    test: Callable[[Any], bool]

    def matches(self, layer: keras.layers.Layer, attribute: str, value: Any) -> bool:
        """Return whether ``layer`` would match with ``value`` as ``attribute``."""
        right = attribute == self.attribute and isinstance(layer, self.layer)
        return right and bool(self.test(value))


def matches(rule: Any, layer: keras.layers.Layer, path: str) -> bool:
    """Return whether one rule matches a layer.

    Args:
        rule: A layer class, a regular expression as a string, or a `When`.
        layer: The layer.
        path: Names of its containers and itself, joined by ``/``.
    """
    if isinstance(rule, When):
        has = hasattr(layer, rule.attribute)
        return has and rule.matches(
            layer, rule.attribute, getattr(layer, rule.attribute)
        )
    if inspect.isclass(rule):
        return isinstance(layer, rule)
    names = path.split("/")
    runs = (
        "/".join(names[start:end])
        for end in range(1, len(names) + 1)
        for start in range(end)
    )
    return any(re.fullmatch(rule, run) for run in runs)


def matches_any(rules: Iterable[Any], layer: keras.layers.Layer, path: str) -> bool:
    """Return whether any of ``rules`` matches ``layer``, found under ``path``."""
    return any(matches(rule, layer, path) for rule in rules)
