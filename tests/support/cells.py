"""The axes of the matrix, and which cells it has. Knows no TensorFlow."""

import dataclasses
import typing


class Strategy(typing.NamedTuple):
    """How many replicas: processes, and logical CPUs in each."""

    title: str
    processes: int = 1
    devices: int = 1

    @property
    def replicas(self):
        return self.processes * self.devices


STRATEGIES = {
    "one-device": Strategy("one device"),
    "mirrored-1": Strategy("Mirrored, 1"),
    "mirrored-2": Strategy("Mirrored, 2", devices=2),
    "mirrored-4": Strategy("Mirrored, 4", devices=4),
    "multi-worker-2": Strategy("MultiWorker, 2", processes=2),
}

WAYS = {
    "fit": "`fit`",
    "fit-steps": "`fit`, `steps_per_execution=2`",
    "fit-eager": "`fit`, `run_eagerly=True`",
    "batch": "`train_on_batch`",
    "loop": "own loop in a `tf.function`",
    "loop-eager": "own loop, eager",
}
LOOPS = ("loop", "loop-eager")
EAGER = ("fit-eager", "loop-eager")

FEATURES = {
    "trains": "trains as on one device",
    "overflow": "overflow on one replica changes nothing on any",
    "clipnorm": "`clipnorm`",
    "global_clipnorm": "`global_clipnorm`",
    "clipvalue": "`clipvalue`",
    "accumulation": "gradient accumulation, SGD",
    "accumulation_adam": "gradient accumulation, Adam",
    "accumulation_overflow": "accumulation drops a micro-batch that overflows",
    "ema": "EMA with `ema_overwrite_frequency`",
    "all_reduce_float16": '`all_reduce_dtype="float16"`',
    "all_reduce_bfloat16": '`all_reduce_dtype="bfloat16"`',
    "aggregate_gradients": "`aggregate_gradients=False`",
    "uneven_batches": "batches that do not divide by the replicas",
    "uneven_last": "a smaller last batch",
    "sparse": "sparse gradients of an embedding",
    "synchronized": "`BatchNormalization(synchronized=True)`",
    "jit": "`jit_compile=True`",
    "resume_inside": "save, load in the scope, go on",
    "resume_outside": "save, load without the strategy, go on",
}

# What a reader of the tables should know besides.
NOTES = {
    "overflow": "In `fit` and `train_on_batch`, BatchNorm statistics and metrics count "
    "too; in a loop of one's own, weights and the optimizer's variables.",
    "uneven_batches": "`fit` takes the mean over each replica's rows and then over the "
    "replicas, so rows of a smaller share weigh more, with keras_mp as with Keras; so "
    "do they in the run on one device that results are held to.",
    "jit": "XLA compiles for one device. With several replicas keras_mp warns and goes "
    "on without it; a loop's own `tf.function` it can only refuse to be part of.",
    "all_reduce_float16": "On one replica there is nothing to sum, and the option "
    "changes nothing.",
}

# Options that only our class has, by feature.
OPTIONS = {
    "all_reduce_float16": "all_reduce_dtype",
    "all_reduce_bfloat16": "all_reduce_dtype",
    "aggregate_gradients": "aggregate_gradients",
}

OWNERS = ("ours", "keras")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One feature in one way under one strategy, with our optimizer or Keras's."""

    owner: str
    strategy: str
    way: str
    feature: str

    @property
    def place(self):
        """The place in the matrix, which our cell and Keras's share."""
        return f"{self.strategy} {self.way} {self.feature}"


def not_applicable(way, feature):
    """Return why there is no such cell, or None if there is one."""
    if feature == "aggregate_gradients" and way not in LOOPS:
        return "Keras calls `apply_gradients` itself"
    if feature == "jit" and way in EAGER:
        return "nothing is compiled"
    return None


def all_cells(owners=OWNERS, strategies=tuple(STRATEGIES)):
    """Return the cells of ``owners`` under ``strategies``."""
    return [
        Cell(owner, strategy, way, feature)
        for owner in owners
        for strategy in strategies
        for feature in FEATURES
        for way in WAYS
        if not_applicable(way, feature) is None
    ]
