"""Rules that match no layer, which are most often misspelled."""

import difflib
from collections.abc import Iterator

import keras

from keras_mp import precision_lists, private
from keras_mp.policies.policy import Policy


def unmatched_rules(model: keras.layers.Layer) -> Iterator[tuple[str, str]]:
    """Yield each rule of a policy in ``model`` that matches no layer, and a remedy."""
    located = list(private.layers.with_paths(model))
    held = [layer.dtype_policy for layer, _ in located]
    for policy in {each for each in held if isinstance(each, Policy)}:
        for rule in policy.all_rules:
            if not any(precision_lists.matches(rule, *each) for each in located):
                shown = rule if isinstance(rule, str) else rule.__name__
                yield shown, _suggestion(model, shown)


def _suggestion(model, rule):
    names = [layer.name for layer in private.layers.walk(model)]
    close = difflib.get_close_matches(rule.split("/")[-1], names, n=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    if not model.built:
        return "The model is not built yet; layers it creates later are not seen."
    return f"Its layers are: {', '.join(names)}."
