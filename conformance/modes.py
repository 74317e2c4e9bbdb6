"""The two ways to train in 16 bits that are compared: Keras alone, and keras_mp."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_mp import flow, ops, policies, training


class KerasAlone:
    """A policy set with Keras's own function, ``model.compile``, functions as are."""

    name = "keras"

    @contextlib.contextmanager
    def scope(self, policy: str) -> Iterator[None]:
        """Set ``policy`` for the layers made inside, and for the calls."""
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)

    def compile(self, model: keras.Model, **arguments: Any) -> None:
        """Compile a model."""
        model.compile(optimizer="sgd", **arguments)

    def function(self, function: Callable) -> Callable:
        """Return a loss or metric function as a loop of one's own calls it."""
        return function


class KerasMP:
    """``policy_scope``, ``keras_mp.compile``, and ``float32`` around functions.

    Layers hand on what they hand to the next in a Functional or Sequential model.
    """

    name = "keras_mp"

    @contextlib.contextmanager
    def scope(self, policy: str) -> Iterator[None]:
        """Set ``policy`` for the layers made inside, and for the calls."""
        with policies.policy_scope(policy), flow.read_by(flow.GRAPH):
            yield

    def compile(self, model: keras.Model, **arguments: Any) -> None:
        """Compile a model."""
        training.compile(model, "sgd", **arguments)

    def function(self, function: Callable) -> Callable:
        """Return a loss or metric function as a loop of one's own calls it."""
        return ops.float32(function, output_dtype="float32")


#: Both, by name.
MODES = {mode.name: mode for mode in (KerasAlone(), KerasMP())}

#: One of them, as a case is given it.
Mode = KerasAlone | KerasMP
