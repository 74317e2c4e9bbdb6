"""What the float32 islands cost: layers with and without them, forward and backward.

Both compute under the same policy, with the same weights and inputs, which come in
16 bits as from a layer before. Without its island a layer is Keras's own.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

import keras_mp
from keras_mp.bench import timing
from keras_mp.bench.processes import alone
from keras_mp.bench.tables import markdown, number
from keras_mp.bench.workloads import SEED

WITH, WITHOUT = "with", "without"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A layer, or a few in a row, of a size that is usual for it.

    Attributes:
        title: What it is, for people.
        build: Makes it, as a function of symbolic tensors.
        shapes: Of its inputs, with the batch.
    """

    title: str
    build: Callable
    shapes: tuple[tuple[int, ...], ...]


def _dense(units, **options):
    return lambda x: layers.Dense(units, **options)(x)


def _self_attention(x):
    return layers.MultiHeadAttention(8, 32)(x, x)


def _grouped_attention(x):
    return layers.GroupQueryAttention(32, 8, 2)(x, x)


def _spectral(x):
    return layers.SpectralNormalization(layers.Dense(512))(x, training=True)


def _transformer_block(x):
    x = layers.LayerNormalization()(x + _self_attention(x))
    hidden = layers.Dense(1024, activation="gelu")(x)
    return layers.LayerNormalization()(x + layers.Dense(256)(hidden))


def _convolutional_network(x):
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, activation="elu", padding="same")(x)
        x = layers.AveragePooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(10, activation="softmax")(x)


_ROWS = (256, 512)
_TOKENS = (8, 128, 256)
_IMAGES = (8, 28, 28, 64)

SUBJECTS = {
    subject.title: subject
    for subject in (
        Subject("Dense, softmax of 1000", _dense(1000, activation="softmax"), (_ROWS,)),
        Subject("Dense, elu", _dense(512, activation="elu"), (_ROWS,)),
        Subject(
            "Dense, activity regularizer",
            _dense(512, activity_regularizer="l2"),
            (_ROWS,),
        ),
        Subject(
            "Conv2D, elu",
            lambda x: layers.Conv2D(64, 3, activation="elu")(x),
            (_IMAGES,),
        ),
        Subject("Softmax", lambda x: layers.Softmax()(x), ((256, 1000),)),
        Subject("UnitNormalization", lambda x: layers.UnitNormalization()(x), (_ROWS,)),
        Subject(
            "Dot, normalize",
            lambda x, y: layers.Dot(-1, normalize=True)([x, y]),
            (_ROWS, _ROWS),
        ),
        Subject("SpectralNormalization", _spectral, (_ROWS,)),
        Subject(
            "AveragePooling2D", lambda x: layers.AveragePooling2D(2)(x), (_IMAGES,)
        ),
        Subject(
            "GlobalAveragePooling2D",
            lambda x: layers.GlobalAveragePooling2D()(x),
            (_IMAGES,),
        ),
        Subject(
            "UpSampling2D, bilinear",
            lambda x: layers.UpSampling2D(interpolation="bilinear")(x),
            (_IMAGES,),
        ),
        Subject(
            "Attention",
            lambda x: layers.Attention(use_scale=True)([x, x]),
            (_TOKENS,),
        ),
        Subject("MultiHeadAttention", _self_attention, (_TOKENS,)),
        Subject("GroupQueryAttention", _grouped_attention, (_TOKENS,)),
        Subject("transformer block", _transformer_block, (_TOKENS,)),
        Subject("convolutional network", _convolutional_network, ((32, 32, 32, 3),)),
    )
}


def measure(policy: str, rounds: int, show: Callable[[str], None]) -> list[dict]:
    """Time each subject with and without its islands, in paired rounds.

    Returns:
        Dicts of ``subject`` and ``seconds``: by `WITH` and `WITHOUT`, the seconds per
        step of each round.
    """
    results = []
    for title in SUBJECTS:
        show(f"  islands: {title}")
        seconds = alone(_time, title, policy, rounds)
        results.append({"subject": title, "seconds": seconds})
    return results


def table(results: list[dict]) -> str:
    """Milliseconds forward and backward, and their ratio."""
    head = ["layer", "without, ms", "with, ms", "with / without", "±"]
    rows = []
    for result in results:
        ours, bare = (result["seconds"][name] for name in (WITH, WITHOUT))
        milliseconds = (statistics.median(each) * 1000 for each in (bare, ours))
        cells = [number(value, ".2f") for value in milliseconds]
        cells.append(number(timing.median_ratio(ours, bare)))
        cells.append(number(timing.standard_error(ours, bare)))
        rows.append([result["subject"], *cells])
    return markdown(head, rows)


def _time(title, policy, rounds):
    policies = {
        WITH: keras_mp.Policy(policy),
        WITHOUT: keras_mp.Policy(policy, allow=[".*"]),
    }
    steps = {name: step(SUBJECTS[title], policy) for name, policy in policies.items()}
    return timing.paired_rounds(steps, rounds)


def step(subject: Subject, policy: keras_mp.Policy) -> Callable[[], None]:
    """Return a function that goes forward and backward once and waits for the end."""
    keras.utils.set_random_seed(SEED)
    low = policy.compute_dtype
    with keras_mp.policy_scope(policy):
        symbolic = [
            keras.Input(shape[1:], shape[0], dtype=low) for shape in subject.shapes
        ]
        model = keras.Model(symbolic, subject.build(*symbolic))
    inputs = [
        tf.cast(tf.random.stateless_normal(shape, (SEED, place)), low)
        for place, shape in enumerate(subject.shapes)
    ]
    weights = [weight.value for weight in model.trainable_variables]

    @tf.function(autograph=False)
    def both_ways():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = model(inputs, training=True)
            loss = [tf.reduce_sum(tf.cast(each, "float32")) for each in model.losses]
        gradients = tape.gradient([outputs, *loss], [*inputs, *weights])
        return [tf.reduce_max(each) for each in gradients]

    def run():
        for each in both_ways():
            each.numpy()

    return run
