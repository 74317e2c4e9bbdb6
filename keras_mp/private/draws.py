"""Random numbers of Keras's layers, drawn in the same dtypes twice.

A generator of TensorFlow gives other numbers in float16 than in float32 for one seed.
So a model that is run in low precision and again in float32 would drop other units, and
its gradients could not be compared. The dtypes that were drawn in first are noted, and
used the second time.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_mp.private import attributes, layers

_BY_DTYPE = ("normal", "truncated_normal", "uniform")


class Draws:
    """The dtypes of random numbers, in the order in which they were drawn."""

    def __init__(self) -> None:
        self._dtypes: list[str] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note the dtypes of what is drawn in the block."""
        self._dtypes = []

        def note(dtype: str) -> str:
            self._dtypes.append(dtype)
            return dtype

        with _drawing_in(note):
            yield

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Draw what the block draws in the dtypes that were noted."""
        noted = iter(self._dtypes)
        with _drawing_in(lambda dtype: next(noted, dtype)):
            yield


@contextlib.contextmanager
def _drawing_in(choose) -> Iterator[None]:
    """Have Keras's layers draw random numbers in the dtypes ``choose(dtype)``."""
    backend = _random_of_backend()
    replaced = {
        name: functools.partial(_numbers, choose, getattr(backend, name))
        for name in _BY_DTYPE
    }
    replaced["dropout"] = functools.partial(_dropout, choose, backend.dropout)
    with attributes.attributes_for_now([(backend, replaced)]):
        yield


def _random_of_backend():
    """Return the module whose functions `keras.random` and Keras's layers call."""
    return sys.modules[keras.random.normal.__module__].backend.random


def _numbers(choose, draw, *args, **kwargs):
    given = inspect.signature(draw).bind(*args, **kwargs).arguments
    wanted = given.get("dtype") or keras.config.floatx()
    dtype = keras.backend.standardize_dtype(wanted)
    return keras.ops.cast(draw(**{**given, "dtype": choose(dtype)}), dtype)


def _dropout(choose, drop, inputs, rate, noise_shape=None, seed=None):
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    chosen = choose(dtype)
    if chosen == dtype:
        return drop(inputs, rate, noise_shape, seed)
    kept = drop(keras.ops.ones_like(inputs, chosen), rate, noise_shape, seed)
    return keras.ops.where(kept != 0, inputs / (1 - rate), 0.0)


def global_seed() -> list[keras.Variable]:
    """Return the state of the generator that draws where no seed was given.

    A list, empty if nothing was drawn so: to make the generator would itself draw.
    """
    module = sys.modules[keras.random.SeedGenerator.__module__]
    generator = module.global_state.get_global_attribute("global_seed_generator")
    return [] if generator is None else [generator.state]


def make_global_seed() -> None:
    """Make the generator that draws where no seed was given, if there is none yet."""
    module = sys.modules[keras.random.SeedGenerator.__module__]
    module.global_seed_generator()


def seeds_of(model: keras.Model) -> list[keras.Variable]:
    """Return the state of each random generator that a layer of ``model`` has.

    In the order of the layers. Keras has no public list of them.
    """
    generators = {
        id(generator): generator
        for layer in layers.walk(model)
        for generator in layer._seed_generators
    }
    return [generator.state for generator in generators.values()]


@contextlib.contextmanager
def seeds_set(seeds: Sequence[keras.Variable], states: Sequence[Any]) -> Iterator[None]:
    """Give random generators other states in the block.

    Args:
        seeds: As of `seeds_of`.
        states: A value for each.
    """
    before = [np.array(keras.ops.convert_to_numpy(seed)) for seed in seeds]
    try:
        for seed, state in zip(seeds, states, strict=True):
            seed.assign(state)
        yield
    finally:
        for seed, state in zip(seeds, before, strict=True):
            seed.assign(state)
