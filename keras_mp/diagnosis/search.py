"""The fewest float32 rules under which a batch is clean, found by trying."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_mp import heads, policies, private
from keras_mp.conversion import convert
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.diagnosis.culprits import rule_for
from keras_mp.policies import Policy
from keras_mp.recording.taps import located

#: So many layers are kept in float32 at most: with more, the policy is of no use.
_MOST = 16


def fewest_rules(
    model: keras.Model,
    culprits: list[Culprit],
    judge: Callable[[], list[Culprit]],
) -> Policy | None:
    """Return a policy under which ``model`` is clean; None if none was found.

    Layers that are culprits are kept in float32, then those that are culprits then, and
    so on. Of these each is tried without, so that no rule is left that is not needed.
    The model is as before afterwards.

    Args:
        model: The model.
        culprits: What is wrong with it as it is.
        judge: Returns what is wrong with the model, as it is when it is called.
    """
    if not policies.is_low_anywhere(model):
        return None

    def found_with(paths: Iterable[str]) -> list[Culprit]:
        with _under(model, policy_with(model, paths)):
            return judge()

    chosen: list[str] = []
    while culprits:
        new = [path for path in _kept_for(model, culprits) if path not in chosen]
        chosen += new
        if not new or len(chosen) > _MOST:
            return None
        culprits = found_with(chosen)
    for path in list(chosen):
        fewer = [each for each in chosen if each != path]
        if not found_with(fewer):
            chosen = fewer
    return policy_with(model, chosen)


def policy_with(model: keras.Model, paths: Iterable[str]) -> Policy:
    """Return the policy of ``model`` with further layers in float32."""
    layers = private.layers.walk(model)
    given = [policies.policy_of(layer) for layer in layers]
    ours = next((p for p in given if isinstance(p, Policy) and p.all_rules), None)
    low = next(layer for layer in layers if policies.is_low_anywhere(layer))
    new = [re.escape(rule_for(path)) for path in paths]
    if ours is None:
        return Policy(policies.policy_of(low).name, new)
    return Policy(
        ours.name,
        [*ours.rules, *new],
        allow=ours.allow,
        follow=ours.follow,
        strict=ours.strict,
    )


@contextlib.contextmanager
def _under(model: keras.Model, policy: Policy) -> Iterator[None]:
    """Have ``model`` under ``policy`` in the block, and as before after it."""
    owners: list[Any] = [each for each, _ in located(model)]
    for layer in private.layers.walk(model):
        if isinstance(layer, keras.layers.InputLayer):
            owners += [layer, layer.output]
    with private.attributes.attributes_restored(owners):
        convert(model, policy)
        heads.keep_in_float32(model)  # as keras_mp.compile does
        yield


def _kept_for(model: keras.Model, culprits: list[Culprit]) -> list[str]:
    """Return the paths of the layers to keep in float32 for ``culprits``.

    An operation between layers is in float32 if what it reads is.
    """
    known = {path: layer for layer, path in located(model)}
    paths = []
    for culprit in culprits:
        found = known.get(culprit.layer)
        if culprit.phase not in ("forward", "backward") or found is None:
            continue
        if isinstance(found, keras.layers.Layer):
            paths.append(culprit.layer)
        else:
            sources = private.graphs.sources_of_operation(found)
            paths += [
                p for p, layer in known.items() if any(layer is s for s in sources)
            ]
    return list(dict.fromkeys(paths))
