"""What is trained: the job, the built-in data sets and their models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_mp
from keras_mp.scaling import DynamicLossScale
from keras_mp.terminal import explain

# A float16 run lets its loss scale grow this often, so that a short run shows it grow,
# overflow and fall back; but at most once in 4 steps, because many skipped steps would
# change the result. By default a scale grows every 2,000 steps.
GROWTHS, LEAST_INTERVAL = 8, 4

TEXT_LENGTH = 64  # characters in one training sequence
TEXT_SAMPLES = 256  # sequences for validation


@dataclasses.dataclass(frozen=True)
class Job:
    """The options of one comparison, which all its processes get.

    Attributes:
        task: Name of the task.
        epochs: How many epochs to train.
        batch_size: Samples in a batch.
        learning_rate: None for the task's own, or that of the model's optimizer.
        seed: Of all random numbers in training.
        replicas: Replicas in one process.
        workers: Processes of one replica each.
        model, data: The user's files, if the task is "custom".
        loss, optimizer: Names, to compile the user's model with; None for its own.
        steps: Training steps in an epoch; None for the task's own number.
        wide: Whether to train the task's wide network, which is made to be timed: its
            steps spend most of their time in matrix products.
        growth_interval: Finite steps after which the loss scale grows.
    """

    task: str
    epochs: int
    batch_size: int
    learning_rate: float | None = None
    seed: int = 0
    replicas: int = 1
    workers: int = 1
    model: str | None = None
    data: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    steps: int | None = None
    wide: bool = False
    growth_interval: int = 2000


@dataclasses.dataclass
class Data:
    """Arrays whose first axis is the sample, and what was done to them."""

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of work: its defaults, its data and how its compiled model is built.

    Attributes:
        steps: Training steps in an epoch; None for all the data.
        wider: How many times as wide the ``wide`` network is; 1 if there is none.
        spread: By how much the validation metric varies with the seed, in float32: the
            largest minus the smallest of ten runs, ``--seed 0`` to ``9``; None if
            unknown.
    """

    title: str
    epochs: int
    batch_size: int
    load: Callable[[Job], Data]
    build: Callable[[Job, str, Data], keras.Model]
    steps: int | None = None
    wider: int = 1
    spread: float | None = None


def with_steps(job: Job, task: Task, samples: int, batch_size: int) -> Job:
    """Return the job with its steps per epoch and its growth interval filled in."""
    steps = job.steps or task.steps or samples // batch_size
    interval = max(LEAST_INTERVAL, job.epochs * steps // GROWTHS)
    return dataclasses.replace(job, steps=steps, growth_interval=interval)


def loss_scaling(job: Job, policy: str) -> DynamicLossScale | None:
    """Return the loss-scale rule of a float16 run; None for other policies."""
    if policy != "mixed_float16":
        return None
    return DynamicLossScale(growth_interval=job.growth_interval)


def split(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return shuffled indices for training and, a fraction of them, for validation.

    They are the same for all of ``--seed``, which changes the training only.
    """
    order = np.random.default_rng(0).permutation(count)
    cut = count - max(1, round(count * fraction))
    return order[:cut], order[cut:]


def fit_batches(data: Data, job: Job) -> tuple[Data, int]:
    """Return data and batch size that divide by the number of replicas or workers.

    The training data stays as it is, because training drops incomplete batches; the
    validation data loses its last samples. The notes say what has changed.

    Raises:
        UserError: There are fewer samples in a batch than replicas or workers.
    """
    kind = "worker" if job.workers > 1 else "replica"
    parts = max(job.replicas, job.workers)
    size = min(job.batch_size, len(data.x)) // parts * parts
    kept = len(data.x_val) // parts * parts
    if not size or not kept:
        raise explain(
            f"--{kind}s {parts} --batch-size {job.batch_size}",
            f"at least one sample for every {kind} in each batch",
            f"batches of {job.batch_size}, {len(data.x)} training samples and "
            f"{len(data.x_val)} validation samples",
            f"give fewer {kind}s, a larger batch size or more data",
        )
    notes = list(data.notes)
    if size != job.batch_size:
        notes.append(f"batch size {size} instead of {job.batch_size}")
    if kept != len(data.x_val):
        notes.append(f"{kept} of the {len(data.x_val)} validation samples used")
    return Data(data.x, data.y, data.x_val[:kept], data.y_val[:kept], notes), size


def load_digits(job: Job) -> Data:
    """Return handwritten digits: x (n, 8, 8, 1) from 0 to 1, y (n,) from 0 to 9."""
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    train, val = split(len(x), 0.2)
    note = f"{len(train):,} training images, {len(val):,} validation images"
    return Data(x[train], y[train], x[val], y[val], [note])


def build_digits(job: Job, policy: str, data: Data) -> keras.Model:
    """Return a convolutional network; small, because 16 bits may be emulated."""
    narrow = 16 * (DIGITS.wider if job.wide else 1)
    with keras_mp.policy_scope(policy):
        inputs = hidden = keras.Input(data.x.shape[1:])
        for width, depth in ((narrow, 3), (2 * narrow, 2)):
            hidden = layers.Conv2D(width, 3, padding="same", use_bias=False)(hidden)
            hidden = layers.BatchNormalization(momentum=0.8)(hidden)
            hidden = layers.ReLU()(hidden)
            for _ in range(depth - 1):
                conv = layers.Conv2D(width, 3, padding="same", activation="relu")
                hidden = conv(hidden)
            hidden = layers.MaxPooling2D()(hidden)
        hidden = layers.Dropout(0.3)(layers.Flatten()(hidden))
        model = keras.Model(inputs, layers.Dense(10, dtype="float32")(hidden))
    return _compile(model, job, policy, metrics=["accuracy"])


def load_text(job: Job) -> Data:
    """Return Python's own help texts, cut into sequences of characters.

    x (n, TEXT_LENGTH), int32, has the characters' numbers, and y the next character for
    each of them. The end of the text is for validation.
    """
    from pydoc_data.topics import topics

    text = np.array(list("\n".join(topics[name] for name in sorted(topics))))
    vocabulary, ids = np.unique(text, return_inverse=True)
    count = (len(ids) - 1) // TEXT_LENGTH
    x = ids[: count * TEXT_LENGTH].reshape(count, TEXT_LENGTH).astype("int32")
    y = ids[1 : count * TEXT_LENGTH + 1].reshape(count, TEXT_LENGTH).astype("int32")
    cut = count - TEXT_SAMPLES
    _, seen = np.unique(y[cut:], return_counts=True)
    share = seen / seen.sum()
    notes = [
        f"{len(text):,} characters of English, {len(vocabulary)} different ones",
        "loss in nats per character; knowing only how often each one occurs gives "
        f"{-(share * np.log(share)).sum():.2f}",
    ]
    return Data(x[:cut], y[:cut], x[cut:], y[cut:], notes)


@keras.saving.register_keras_serializable(package="keras_mp.compare")
class LearnedPosition(layers.Layer):
    """Adds a learned vector for each position to its input, (n, length, width)."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x: Any) -> Any:
        return x + self.table


def build_text(job: Job, policy: str, data: Data) -> keras.Model:
    """Return a causal transformer over characters, with a convolution before it."""
    width, heads = 64 * (TEXT.wider if job.wide else 1), 4
    characters = int(max(data.x.max(), data.y.max(), data.y_val.max())) + 1
    with keras_mp.policy_scope(policy):
        inputs = keras.Input((data.x.shape[1],), dtype="int32")
        hidden = layers.Embedding(characters, width)(inputs)
        hidden = LearnedPosition()(hidden)
        hidden += layers.Conv1D(width, 4, padding="causal", activation="relu")(hidden)
        for _ in range(2):
            normed = layers.LayerNormalization()(hidden)
            attention = layers.MultiHeadAttention(heads, width // heads)
            hidden += attention(normed, normed, use_causal_mask=True)
            normed = layers.LayerNormalization()(hidden)
            wide = layers.Dense(4 * width, activation="relu")(normed)
            hidden += layers.Dense(width)(wide)
        hidden = layers.LayerNormalization()(hidden)
        logits = layers.Dense(characters, dtype="float32")(hidden)
        model = keras.Model(inputs, logits)
    return _compile(model, job, policy, metrics=[])


def _compile(
    model: keras.Model, job: Job, policy: str, metrics: list[str]
) -> keras.Model:
    keras_mp.compile(
        model,
        scaling=loss_scaling(job, policy),
        optimizer=keras.optimizers.Adam(job.learning_rate or 1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=metrics,
    )
    return model


DIGITS = Task(
    "handwritten digits, convolutional network",
    12,
    128,
    load_digits,
    build_digits,
    wider=8,
    spread=0.0223,
)
TEXT = Task(
    "English text, character-level transformer",
    6,
    32,
    load_text,
    build_text,
    steps=20,
    wider=4,
    spread=0.1162,
)
