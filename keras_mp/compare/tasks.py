"""What is trained: the job, the built-in data sets and their models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_mp
from keras_mp.scaling import DynamicLossScale
from keras_mp.terminal import explain

# How often the loss scale could grow in a float16 run. Each time it doubles: after some
# it overflows, comes back and grows again. In long training it grows each 2,000 steps;
# in a few steps it is left nearly alone, since each skipped one would show.
GROWTHS, LEAST_INTERVAL = 8, 4

TEXT_LENGTH = 64  # characters in one training sequence
TEXT_SAMPLES = 256  # sequences for validation


@dataclasses.dataclass(frozen=True)
class Job:
    """One comparison, as all its processes are told about it.

    ``None`` stands for the task's own value. A ``wide`` network is for its time only:
    so wide that the time goes into products.
    """

    task: str = "digits"
    epochs: int | None = None
    batch_size: int | None = None
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
    growth_interval: int | None = None


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
        steps: In an epoch; None for all the data.
        wider: How many times as wide the ``wide`` network is; None if there is none.
        spread: How far the validation metric moves by the seed alone, in float32: the
            largest less the smallest of ten, of ``--seed 0`` to ``9``. None if unknown.
    """

    title: str
    epochs: int
    batch_size: int
    load: Callable[[Job], Data]
    build: Callable[[Job, str, Data], keras.Model]
    steps: int | None = None
    wider: int | None = None
    spread: float | None = None


def with_defaults(job: Job, task: Task) -> Job:
    """The job with the task's own number of epochs and batch size filled in."""
    return dataclasses.replace(
        job,
        epochs=job.epochs or task.epochs,
        batch_size=job.batch_size or task.batch_size,
    )


def with_steps(job: Job, task: Task, samples: int, batch_size: int) -> Job:
    """The job with the steps of an epoch, and after how many the scale may grow."""
    steps = job.steps or task.steps or samples // batch_size
    interval = max(LEAST_INTERVAL, job.epochs * steps // GROWTHS)
    return dataclasses.replace(job, steps=steps, growth_interval=interval)


def loss_scaling(job: Job, policy: str) -> DynamicLossScale | None:
    """The rule of a run in float16, whose scale moves within few steps."""
    if policy != "mixed_float16":
        return None
    return DynamicLossScale(growth_interval=job.growth_interval or 2000)


def split(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled indices for training and, the given fraction, for validation.

    The same for each seed: what a seed changes is how training goes.
    """
    order = np.random.default_rng(0).permutation(count)
    cut = count - max(1, round(count * fraction))
    return order[:cut], order[cut:]


def fit_batches(data: Data, job: Job) -> tuple[Data, int]:
    """Data and batch size such that every batch divides by the replicas or workers.

    The training data is left whole (incomplete batches are dropped anyway); the
    validation data loses what does not divide. What changed is in the notes.
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
    """1,797 handwritten digits, x (n, 8, 8, 1) in 0..1, y (n,) in 0..9."""
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    train, val = split(len(x), 0.2)
    note = f"{len(train):,} training images, {len(val):,} validation images"
    return Data(x[train], y[train], x[val], y[val], [note])


def build_digits(job: Job, policy: str, data: Data) -> keras.Model:
    """A convolutional network; small, since 16 bits may be emulated."""
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
    """Python's own help texts, cut into sequences of characters.

    x (n, TEXT_LENGTH) int32: the characters' numbers; y: the same, one further on.
    The end of the text is for validation.
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
    """Adds a learned vector for each place, (length, width), to (n, length, width)."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.table


def build_text(job: Job, policy: str, data: Data) -> keras.Model:
    """A causal transformer over characters, with a convolution before it."""
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
