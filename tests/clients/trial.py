"""One client, trained one way: what holds, and what does not."""

import functools
import gc
import pathlib
import re
import tempfile
import warnings
from typing import NamedTuple

import keras
import numpy as np

import keras_mp

from .client import FLOAT32

STEPS = 3
# The scale starts at 2**15: this many halvings take it to 1.
SKIPS = 15

# How far a loss and the change of all weights may be from float32's, relatively. One
# rounding is 2**-11 in float16 and 2**-8 in bfloat16; a gradient goes through some tens
# of them, and the small models here have few terms to average over.
LOSS = {"float32": 1e-6, "mixed_float16": 2**-7, "mixed_bfloat16": 2**-4}
CHANGE = {"float32": 1e-6, "mixed_float16": 2**-4, "mixed_bfloat16": 2**-1}
# A model whose float32 steps move further when nothing but its first weights are
# rounded once may move as far as some roundings of that size, one a layer, take it; but
# steps that are off by their own length show nothing.
ROUNDINGS, WHOLE = 8, 1.0

CHECKS = "train", "save", "lint", "generate"


class Result(NamedTuple):
    """What became of one client in one way.

    Attributes:
        outcomes: By check, "passed" or why not.
        said: The warnings that came.
        trained: The losses and the change of the weights; None if training failed.
        initial: The weights before.
    """

    outcomes: dict
    said: list
    trained: tuple | None
    initial: list | None


@functools.lru_cache(maxsize=1)
def in_float32(client):
    """Return the result of ``client`` in float32."""
    return _tried(client, FLOAT32, None)


@functools.lru_cache(maxsize=3)
def allowed(client, policy):
    """Return how far losses and updates may be from float32's under ``policy``."""
    expected = in_float32(client)
    model = _made(client, FLOAT32)
    dtype = keras.DTypePolicy(policy).compute_dtype
    model.set_weights([_through(dtype, each) for each in expected.initial])
    off = _difference(_train(client, model), expected.trained)
    limits = np.maximum([LOSS[policy], CHANGE[policy]], np.multiply(ROUNDINGS, off))
    return np.minimum(limits, WHOLE)


def _through(dtype, weight):
    """Return a float ``weight`` rounded to ``dtype`` and back."""
    if weight.dtype.kind != "f":
        return weight
    return np.array(keras.ops.cast(keras.ops.cast(weight, dtype), weight.dtype))


def run(client, way):
    """Return the result of ``client`` in ``way``, with the warnings that are new."""
    expected = in_float32(client)
    found = _tried(client, way, expected)
    said = [text for text in found.said if text not in expected.said]
    return found._replace(said=said)


def _tried(client, way, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, trained, initial = None, None, None
        try:
            model = _made(client, way)
            if expected:
                model.set_weights(expected.initial)
            initial = model.get_weights()
            trained = _train(client, model)
            _judge(client, way, trained, expected and expected.trained)
            outcomes = {"train": "passed"}
        except Exception as error:
            outcomes = {"train": _said(error)}
        else:
            outcomes |= dict(_checked(client, way, model))
    said = list(dict.fromkeys(_plain(str(each.message)) for each in caught))
    return Result(outcomes, said, trained, initial)


def _checked(client, way, model):
    """Yield each check of the trained ``model``, and its outcome."""
    checks = {"save": _save, "generate": _generate}
    if way.owner == "ours":
        checks["lint"] = _lint
    if client.generate is None:
        del checks["generate"]
    for name, check in checks.items():
        try:
            check(client, way, model)
        except Exception as error:
            yield name, _said(error)
        else:
            yield name, "passed"


def _said(error):
    """Return what went wrong in one line; Keras puts the layer first and colours it."""
    lines = [line.strip() for line in _plain(str(error)).split("\n") if line.strip()]
    wrapped = lines[1:] and lines[0].startswith("Exception encountered")
    return f"{type(error).__name__}: {lines[1 if wrapped else 0] if lines else ''}"


def _plain(text):
    """Return ``text`` without colours, and without where packages lie."""
    return re.sub(r"\x1b\[\d+m|[^\s'\"]*/site-packages/", "", text)


def _made(client, way):
    compiled = functools.partial(_compiled, client, way)
    return client.tune(compiled) if client.tune else compiled()


def _compiled(client, way):
    """Return the client's model, built and compiled that way."""
    keras.backend.clear_session(free_memory=False)
    gc.collect()
    keras.utils.set_random_seed(0)
    arguments = {"optimizer": keras.optimizers.SGD(0.01), **client.compile()}
    policy = way.policy
    if client.rules and way.owner == "ours":
        policy = keras_mp.Policy(policy, float32=client.rules)
    at_once = way.how == "set_policy"
    try:
        if at_once:
            _set_policy(way)(policy)
        model = _without_dropout(client.build())
    finally:
        keras.config.set_dtype_policy("float32")
    if way.owner == "ours":
        keras_mp.compile(model, policy=None if at_once else policy, **arguments)
    else:
        model.compile(**arguments)
    return model


def _without_dropout(model):
    """Return ``model`` with layers that drop nothing: dtypes draw other numbers."""
    for layer in model._flatten_layers():
        if "rate" in vars(layer):
            layer.rate = 0.0
    return model


def _set_policy(way):
    return keras_mp.set_policy if way.owner == "ours" else keras.config.set_dtype_policy


def _train(client, model):
    """Return the losses of the first steps that were applied, and what they changed."""
    arguments = client.fit_arguments()
    start = _trainable(model)
    losses = []
    for _ in range(STEPS + SKIPS):
        before = _trainable(model)
        logs = model.fit(**arguments).history
        if any(map(np.any, map(np.subtract, _trainable(model), before))):
            losses.append(logs["loss"][0])
        if len(losses) == STEPS:
            break
    change = map(np.subtract, _trainable(model), start)
    return losses, np.concatenate([each.ravel() for each in change])


def _trainable(model):
    return [np.array(each) for each in model.trainable_variables]


def _judge(client, way, trained, expected):
    """Raise an AssertionError if ``trained`` differs by more than rounding."""
    losses, change = trained
    assert len(losses) == STEPS, f"{len(losses)} of {STEPS + SKIPS} steps were applied"
    assert np.isfinite(losses).all(), f"losses are {losses}"
    assert np.isfinite(change).all(), "weights are not finite"
    if client.draws or expected is None:
        return
    loss_off, update_off = _difference(trained, expected)
    loss_limit, update_limit = allowed(client, way.policy)
    assert loss_off < loss_limit, f"losses are off by {loss_off:.1%}: {losses}"
    assert update_off < update_limit, f"updates are off by {update_off:.1%}"


def _difference(trained, expected):
    """Return how far losses and updates are from those expected, relatively."""
    (losses, change), (right_losses, right_change) = trained, expected
    of_losses = np.abs(np.subtract(losses, right_losses)) / np.abs(right_losses)
    of_change = np.linalg.norm(change - right_change) / np.linalg.norm(right_change)
    return np.max(of_losses), of_change


def _save(client, way, model):
    """Raise an AssertionError unless the saved model predicts the same."""
    load = keras_mp.load_model if way.owner == "ours" else keras.saving.load_model
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        loaded = load(path)
    expected = client.predictions(model)
    found = client.predictions(loaded)
    for right, each in zip(expected, found, strict=True):
        assert right.dtype == each.dtype, f"{right.dtype} was loaded as {each.dtype}"
        off = np.abs(right.astype(float) - each.astype(float)).max()
        same = np.array_equal(right, each, equal_nan=right.dtype.kind == "f")
        near = client.merges and off < LOSS[way.policy] * np.abs(right).max()
        assert same or near, f"predictions are off by {off:.2g}"


def _generate(client, way, model):
    client.generate(model)


def _lint(client, way, model):
    found = [each for each in keras_mp.lint(model) if each.severity != "note"]
    assert not found, f"{len(found)}: {found[0]}"
