"""The models that are timed, and the random batches that they are fed.

Sizes are such that the optimizer shows: many small variables, few large ones, a large
table of which a batch touches little, and two ordinary networks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

SEED = 0


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and its data.

    Attributes:
        title: What it is, for tables.
        build: ``build()`` returns a new model, under the present policy.
        batch: ``batch(rows)`` returns float32 or int32 arrays ``x`` and ``y``.
        rows: How many rows a batch has.
        loss: Its loss, as `keras.Model.compile` takes it.
    """

    title: str
    build: Callable[[], keras.Model]
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]]
    rows: int
    loss: str = "mse"


def _regression(width):
    """Return a head in float32, as keras_mp has it, so that all compute the same."""
    return layers.Dense(width, dtype="float32")


def _small_dense():
    body = [layers.Dense(32, activation="relu") for _ in range(149)]
    return keras.Sequential([keras.Input((32,)), *body, _regression(32)])


def _wide_dense(width=2048):
    body = [layers.Dense(width, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((width,)), *body, _regression(width)])


def _embedding(table=500_000):
    return keras.Sequential(
        [
            keras.Input((32,), dtype="int32"),
            layers.Embedding(table, 64),
            layers.GlobalAveragePooling1D(),
            _regression(1),
        ]
    )


def _convolutional(width=32):
    inputs = hidden = keras.Input((32, 32, 3))
    for factor in (1, 2, 4):
        hidden = layers.Conv2D(factor * width, 3, padding="same", use_bias=False)(
            hidden
        )
        hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
        hidden = layers.MaxPooling2D()(hidden)
    logits = layers.Dense(10, dtype="float32")(layers.GlobalAveragePooling2D()(hidden))
    return keras.Model(inputs, layers.Softmax(dtype="float32")(logits))


def _transformer(width=256, blocks=2, characters=128):
    inputs = keras.Input((64,), dtype="int32")
    hidden = layers.Embedding(characters, width)(inputs)
    for _ in range(blocks):
        normed = layers.LayerNormalization()(hidden)
        attention = layers.MultiHeadAttention(width // 64, 64)
        hidden += attention(normed, normed, use_causal_mask=True)
        normed = layers.LayerNormalization()(hidden)
        hidden += layers.Dense(width)(
            layers.Dense(4 * width, activation="relu")(normed)
        )
    logits = layers.Dense(characters, dtype="float32")(
        layers.LayerNormalization()(hidden)
    )
    return keras.Model(inputs, layers.Softmax(dtype="float32")(logits))


def _floats(*shape):
    def batch(rows):
        random = np.random.default_rng(SEED)
        return tuple(random.normal(size=(rows, *shape)).astype("float32") for _ in "xy")

    return batch


def _ids(length, below, labels):
    def batch(rows):
        random = np.random.default_rng(SEED)
        x = random.integers(below, size=(rows, length), dtype="int32")
        return x, labels(random, x)

    return batch


def _images(rows):
    random = np.random.default_rng(SEED)
    x = random.normal(size=(rows, 32, 32, 3)).astype("float32")
    return x, random.integers(10, size=rows, dtype="int32")


_CLASSES = "sparse_categorical_crossentropy"

WORKLOADS = {
    "small": Workload("150 Dense of width 32", _small_dense, _floats(32), 64),
    "wide": Workload("4 Dense of width 2048", _wide_dense, _floats(2048), 256),
    "embedding": Workload(
        "embedding of 500,000 x 64",
        _embedding,
        _ids(
            32,
            500_000,
            lambda random, x: random.normal(size=(len(x), 1)).astype("float32"),
        ),
        256,
    ),
    "convolutional": Workload(
        "convolutional network", _convolutional, _images, 64, _CLASSES
    ),
    "transformer": Workload(
        "transformer",
        _transformer,
        _ids(64, 128, lambda random, x: np.roll(x, -1, axis=1)),
        32,
        _CLASSES,
    ),
}


def sized(name: str, rows: int | None = None, **size) -> Workload:
    """Return one of `WORKLOADS` at another size.

    Args:
        name: ``"wide"``, ``"convolutional"`` or ``"transformer"`` to change the model;
            any if only the rows are to change.
        rows: Rows of a batch; by default, the workload's.
        size: What its model is built with: ``width``, and ``blocks`` of a transformer.
    """
    known = WORKLOADS[name]
    wide = name == "wide" and size
    return dataclasses.replace(
        known,
        build=functools.partial(known.build, **size),
        batch=_floats(size["width"]) if wide else known.batch,
        rows=rows or known.rows,
    )
