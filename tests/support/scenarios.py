"""The features: one function each, named as in `cells.FEATURES`.

Each trains a small model through a `Trial` and raises an AssertionError if the result
is not what the bare optimizer gives on one device. Learning rates are such that a
feature that is ignored, or applied per replica, moves weights by 1e-3 or more.
"""

import math

import keras
import numpy as np

from .cells import STRATEGIES
from .trial import ROUNDING, SCALE

ROWS = 8

# What one rounding of every gradient may move weights by, over a few steps of 0.1:
# half a unit in the last place of 11 and of 8 bits, times what the steps sum up to.
NARROW = {"float16": 1e-3, "bfloat16": 1e-2}


def batches(count, rows=ROWS):
    """Return ``count`` batches of a regression; the same rows however they are cut."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count * rows, 4)).astype("float32")
    y = x[:, :1] ** 2 + x[:, 1:2]
    return _cut(x, y, rows)


def poisoned(batch):
    """Return ``batch`` with a last row, the last replica's, that overflows."""
    x, y = batch
    x = x.copy()
    x[-1] = np.inf
    return x, y


def dense():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh", use_bias=False),
            keras.layers.Dense(1, use_bias=False),
        ]
    )


def normalized(synchronized=False, dtype=None):
    # A bias before the normalization would have gradients of mere rounding errors.
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, use_bias=False, dtype=dtype),
            keras.layers.BatchNormalization(synchronized=synchronized, dtype=dtype),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )


def sgd(**options):
    return lambda: keras.optimizers.SGD(0.1, **options)


def adam(**options):
    return lambda: keras.optimizers.Adam(0.05, **options)


def _same(trial, build, inner, data, **options):
    """Train with ``data`` and compare with one device."""
    model = trial.model(build, inner, **options)
    trial.train(model, data)
    trial.finish(model)
    trial.check(model)
    return model


def trains(trial):
    model = trial.model(dense, lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1))
    history = trial.train(model, batches(4))
    trial.check(model)
    if history is None:
        return
    (loss,) = history.history["loss"]
    expected = trial.truth.setdefault("loss", loss)
    assert abs(loss - expected) <= ROUNDING, f"loss is {loss}, not {expected}"


def overflow(trial):
    """A run with a step that overflows in between ends as the run without it."""
    if trial.bare:
        return
    with trial.strategy.scope():
        model = trial.model(lambda: normalized(dtype="mixed_float16"), adam())
        model.optimizer.build(model.trainable_variables)
    variables = model.variables + model.optimizer.variables
    start = [trial.parts(variable)[0] for variable in variables]
    first, second, third = batches(3)

    trial.train(model, [first, third])
    trial.check_scale(model, SCALE)
    without = _state(trial, model)
    trained = trial.parts(model.trainable_variables[0])[0]
    assert not np.array_equal(trained, start[0]), "clean steps changed nothing"
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    model.reset_metrics()  # which not every version's `train_on_batch` does
    trial.train(model, [first, poisoned(second), third])

    changed = _different(_state(trial, model), without)
    assert not changed, f"the step that overflowed changed {', '.join(changed)}"
    trial.check_scale(model, SCALE / 2)
    trial.agreed(model)


def _state(trial, model):
    """Return what a skipped step must leave alone, as each replica here holds it.

    Not metrics: they leave out what is not finite, and the rest of the batch counts.
    """
    variables = model.trainable_variables + model.optimizer.inner_optimizer.variables
    if not trial.loop:  # a loop's forward pass is not ours to undo
        variables += model.non_trainable_variables
    return {
        f"{index} {variable.path}": trial.parts(variable)
        for index, variable in enumerate(variables)
    }


def _different(state, other):
    return [
        name.split(" ", 1)[1]
        for name, parts in state.items()
        if not np.array_equal(parts, other[name])
    ]


def clipnorm(trial):
    _same(trial, dense, sgd(clipnorm=0.05), batches(4))


def global_clipnorm(trial):
    _same(trial, dense, sgd(global_clipnorm=0.05), batches(4))


def clipvalue(trial):
    _same(trial, dense, sgd(clipvalue=0.02), batches(4))


def accumulation(trial):
    _accumulates(trial, lambda **o: keras.optimizers.SGD(0.1, momentum=0.9, **o))


def accumulation_adam(trial):
    _accumulates(trial, lambda **o: keras.optimizers.Adam(0.05, **o))


def accumulation_overflow(trial):
    _accumulates(trial, lambda **o: keras.optimizers.SGD(0.1, momentum=0.9, **o), 1)


def _accumulates(trial, inner, poison=None):
    """Two windows of two micro-batches are two batches of twice the size.

    ``poison`` is where to put a micro-batch that overflows: it counts for nothing.
    """
    if trial.bare:
        return _same(trial, dense, inner, batches(2, rows=2 * ROWS))
    data = batches(4)
    if poison is not None:
        data.insert(poison, poisoned(data[0]))
    window = {"gradient_accumulation_steps": 2}
    model = _same(trial, dense, lambda: inner(**window), data)
    expected = SCALE if poison is None else SCALE / 2
    trial.check_scale(model, expected)


def ema(trial):
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    _same(trial, dense, sgd(**options), batches(5))


def all_reduce_float16(trial):
    _narrow(trial, "float16")


def all_reduce_bfloat16(trial):
    _narrow(trial, "bfloat16")


def _narrow(trial, dtype):
    if trial.bare:
        return _same(trial, dense, sgd(), batches(4))
    model = trial.model(dense, sgd(), all_reduce_dtype=dtype)
    trial.train(model, batches(4))
    difference = trial.check(model, atol=NARROW[dtype])
    # Rounded gradients show; the order of a float32 sum would move weights by 1e-7.
    shows = difference > 5e-6
    if trial.way != "batch":  # where each replica has the same gradients
        reduced = trial.strategy.num_replicas_in_sync > 1
        assert shows == reduced, f"weights differ from one device's by {difference:.1e}"


def aggregate_gradients(trial):
    """A loop that sums gradients itself asks that they not be summed again."""
    if trial.bare:
        return _same(trial, dense, sgd(), batches(4))
    model = trial.model(dense, sgd())
    trial.train(model, batches(4), aggregate_gradients=False)
    trial.check(model)


def uneven_batches(trial):
    _uneven(trial, batches(3, rows=5))


def uneven_last(trial):
    x, y = (np.concatenate(parts) for parts in zip(*batches(3), strict=True))
    _uneven(trial, _cut(x[:-3], y[:-3], ROWS))


def _uneven(trial, data):
    """In `fit`, Keras takes the mean over each replica's rows, then over replicas.

    So the truth is a run on one device whose rows weigh as much. The other ways weigh
    all rows the same: a loop divides by the rows of the global batch, and
    `train_on_batch` gives all of them to each replica.
    """
    if trial.bare:
        for replicas in sorted({s.replicas for s in STRATEGIES.values()}):
            model = trial.model(dense, sgd())
            trial.train(model, [(x, y, _weights(len(x), replicas)) for x, y in data])
            trial.check(model, f"{replicas} shares")
        return
    model = trial.model(dense, sgd())
    trial.train(model, data)
    shares = trial.strategy.num_replicas_in_sync if trial.fits else 1
    trial.check(model, f"{shares} shares")


def _weights(rows, replicas):
    """Return what each row weighs relative to a plain mean, as ``tf.data`` cuts them.

    Shares have the same size as long as there are rows; the last may have none.
    """
    size = math.ceil(rows / replicas)
    shares = [min(size, rows - start) for start in range(0, rows, size)]
    weights = [np.full(share, rows / (replicas * share)) for share in shares]
    return np.concatenate(weights).astype("float32")


def sparse(trial):
    def build():
        return keras.Sequential(
            [
                keras.Input((2,), dtype="int32"),
                keras.layers.Embedding(6, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(1, use_bias=False),
            ]
        )

    tokens = np.random.default_rng(0).integers(0, 6, size=(4 * ROWS, 2), dtype="int32")
    y = tokens.sum(axis=1, keepdims=True).astype("float32") / 6
    # Keras's Adam squares repeated rows one by one, so that its result depends on how
    # they are cut; momentum is linear.
    inner = sgd(momentum=0.9)
    _same(trial, build, inner, _cut(tokens, y, ROWS))


def synchronized(trial):
    model = trial.model(lambda: normalized(synchronized=True), sgd())
    trial.train(model, batches(4))
    # A variance that is summed over replicas is a difference of squares, and loses a
    # digit to the one-device formula.
    trial.check(model, atol=10 * ROUNDING)


def jit(trial):
    _same(trial, dense, sgd(), batches(4), jit=True)


def resume_inside(trial):
    _resumes(trial, trial.strategy.scope)


def resume_outside(trial):
    _resumes(trial, None)


def _resumes(trial, scope):
    """Train, save, load, train on: as if nothing had been in between."""
    data = batches(4)
    if trial.bare:
        return _same(trial, dense, adam(), data)
    model = trial.model(dense, adam(), dynamic_growth_steps=2)
    trial.train(model, data[:2])
    model.save(trial.folder / "model.keras")
    if scope is None:
        loaded = trial.load(trial.folder / "model.keras")
    else:
        with scope():
            loaded = trial.load(trial.folder / "model.keras")
    trial.train(loaded, data[2:])
    trial.check(loaded)
    trial.check_scale(loaded, 4 * SCALE)  # doubled after two steps and again after four


def _cut(x, y, rows):
    """Return the arrays in batches of ``rows``."""
    starts = range(0, len(x), rows)
    return [(x[start : start + rows], y[start : start + rows]) for start in starts]
