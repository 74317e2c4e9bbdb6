"""The layers that go through steps, and those that shape, pass on or drop values."""

from __future__ import annotations

import keras
import numpy as np

from conformance.cases import (
    LONG,
    Case,
    Given,
    Subject,
    calling,
    floats,
    logits,
    masked,
    normal,
)
from conformance.layer_cases import BY_RANK, SEQUENCE, layer, made

_STEPS = {**SEQUENCE, "masked": masked((3, 8, 4))}


def _recurrence():
    for name in ("LSTM", "GRU", "SimpleRNN"):
        yield layer(name, _STEPS, units=4)
        yield layer(
            name,
            {"ordinary": normal((1, 64, 4))},
            variant="64 steps",
            units=4,
            return_sequences=True,
        )
        yield Case("layers", f"{name}Cell", _cell(f"{name}Cell"), floats((2, 4)))
    yield layer("RNN", _STEPS, make=lambda: keras.layers.RNN(made("LSTMCell", 4)()))
    yield Case("layers", "StackedRNNCells", _stacked, floats((2, 4)))
    for rank, scenarios in BY_RANK.items():
        frames = {
            key: _with_axis(scenario)
            for key, scenario in scenarios.items()
            if rank < 3 or key == "ordinary"
        }
        yield layer(f"ConvLSTM{rank}D", frames, filters=2, kernel_size=2)
    for inner in ("LSTM", "GRU"):
        yield layer(
            "Bidirectional",
            _STEPS,
            variant=inner,
            # Of saturated gates, gradients of 1e-10 are left: none in float16.
            unstable=("large",),
            make=lambda inner=inner: keras.layers.Bidirectional(made(inner, 4)()),
        )
    for inner, config in (
        ("Dense", dict(units=4)),
        ("Dense", dict(units=4, activation="softmax")),
        ("Softmax", {}),
        ("UnitNormalization", {}),
    ):
        yield layer(
            "TimeDistributed",
            _STEPS if inner == "Dense" else SEQUENCE,
            variant=" ".join([inner, config.get("activation", "")]).strip(),
            make=lambda inner=inner, config=config: keras.layers.TimeDistributed(
                made(inner, **config)()
            ),
        )


def _cell(name):
    """Build one step of a cell, its states at zero; it returns output and states."""

    def build(mode):
        cell = getattr(keras.layers, name)(4)
        return Subject(lambda x: cell(x, _states(cell, x)), cell)

    return build


def _stacked(mode):
    cell = keras.layers.StackedRNNCells(
        [keras.layers.LSTMCell(4), keras.layers.GRUCell(4)]
    )
    return Subject(lambda x: cell(x, _states(cell, x)), cell)


def _states(cell, x):
    return cell.get_initial_state(batch_size=x.shape[0])


def _with_axis(scenario):
    """The same scenario with an axis of time after the batch's."""

    def make(random):
        (x,) = scenario(random).args
        return Given(np.stack([x, x[::-1]], axis=1))

    return make


def _shapes():
    yield layer("Activation", floats((4, 8)), activation="relu")
    yield layer("Identity", floats((4, 8)))
    yield layer("Flatten", SEQUENCE)
    yield layer("Reshape", SEQUENCE, target_shape=(4, 8))
    yield layer("Permute", SEQUENCE, dims=(2, 1))
    yield layer("RepeatVector", floats((4, 8)), n=3)
    yield layer("Lambda", floats((4, 8)), function=lambda x: 2 * x)
    yield layer("Masking", SEQUENCE)
    for name in ("ELU", "LeakyReLU", "PReLU", "ReLU"):
        yield layer(name, floats((4, 8)))
    rows = floats((4, 8), long=(2, LONG))
    yield layer(
        "Softmax", {**rows, "extreme": logits((4, 8)), "masked": masked((3, 8))}
    )
    pixels = {
        **floats((4, 8)),
        "unscaled": lambda random: Given(random.uniform(0, 65535, (4, 8))),
    }
    yield layer("Rescaling", pixels, scale=1 / 127.5, offset=-1.0)
    for rank, scenarios in BY_RANK.items():
        yield layer(f"Cropping{rank}D", scenarios, cropping=1)
        yield layer(f"ZeroPadding{rank}D", scenarios, padding=1)
        if rank != 2:
            yield layer(f"UpSampling{rank}D", scenarios, size=2)
    yield from _dropouts()


_DRAWN = "it draws its random numbers in the compute dtype"


def _dropouts():
    names = {
        "Dropout": (SEQUENCE, dict(rate=0.5)),
        "AlphaDropout": (SEQUENCE, dict(rate=0.5)),
        "GaussianDropout": (SEQUENCE, dict(rate=0.5)),
        "GaussianNoise": (SEQUENCE, dict(stddev=0.5)),
        **{
            f"SpatialDropout{rank}D": (scenarios, dict(rate=0.5))
            for rank, scenarios in BY_RANK.items()
        },
    }
    for name, (scenarios, config) in names.items():
        for training in (False, True):
            yield layer(
                name,
                calling(scenarios, training=training),
                variant=f"training={training}",
                random=_DRAWN if training else "",
                **config,
            )


def step_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> "LSTM" in {case.name for case in step_cases()}
    True
    """
    return [*_recurrence(), *_shapes()]
