"""What a program is, and the list of all programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

POLICIES = ("mixed_float16", "mixed_bfloat16")
BATCH = 4
ROWS = 3 * BATCH  # three steps


@dataclasses.dataclass
class Trial:
    """A model and what it takes to train it for three steps.

    Args:
        model: A new model, built or not.
        x: Arrays of `ROWS` rows, or a ``tf.data.Dataset`` of three batches.
        y: Targets, or None.
        loss: As for ``model.compile``.
        optimizer: Returns a new optimizer.
        options: Further arguments of ``model.compile``.
        compile: Compiles a model whose ``compile`` has a signature of its own:
            ``compile(model, wrap)``, where ``wrap`` gives an optimizer loss scaling.
        loop: Trains a model in a loop of its own: ``loop(model, optimizer, x, y)``,
            which returns the losses of the three steps.
        calls: Whether the model can be called, and so evaluated.
    """

    model: keras.Model
    x: Any
    y: Any = None
    loss: Any = "mse"
    optimizer: Callable = lambda: keras.optimizers.SGD(0.01, momentum=0.9)
    options: dict = dataclasses.field(default_factory=dict)
    compile: Callable | None = None
    loop: Callable | None = None
    calls: bool = True


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the list.

    Args:
        build: Returns a new `Trial`. If it takes an argument, it is given a function
            that compiles a part: ``compiled(model, optimizer, loss)``.
        fails: The policies under which Keras alone raises an error.
        noise: Why losses differ more than by rounding, or None.
        says: A regular expression of the warnings that keras_mp may give, or None.
    """

    build: Callable
    fails: tuple = ()
    noise: str | None = None
    says: str | None = None

    @property
    def name(self):
        return f"{self.build.__module__.split('.')[-1]}-{self.build.__name__}"


PROGRAMS = []


def program(**properties):
    """Put the decorated function on the list."""

    def listed(build):
        PROGRAMS.append(Program(build, **properties))
        return build

    return listed


def normal(*shape, seed=0):
    """Return `ROWS` rows of normal numbers."""
    return np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype("float32")


def uniform(*shape, seed=0):
    """Return `ROWS` rows of numbers from 0 to 1."""
    return np.random.default_rng(seed).uniform(size=(ROWS, *shape)).astype("float32")


def ids(count, *shape, dtype="int32", seed=0):
    """Return `ROWS` rows of whole numbers below ``count``."""
    return np.random.default_rng(seed).integers(0, count, (ROWS, *shape)).astype(dtype)
