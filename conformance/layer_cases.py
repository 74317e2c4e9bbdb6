"""The layers: dense, convolutions, norms, pooling, merging, recurrence, shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from conformance.cases import (
    LONG,
    Case,
    Given,
    Scenario,
    Subject,
    calling,
    floats,
    logits,
    masked,
    normal,
    several,
)


def layer(
    name: str,
    scenarios: Mapping[str, Scenario],
    *,
    variant: str = "",
    make: Callable[[], keras.layers.Layer] | None = None,
    random: str = "",
    differentiable: bool = True,
    unstable: tuple[str, ...] = (),
    **config: Any,
) -> Case:
    """The case of one layer.

    Args:
        name: Its public name.
        scenarios: Its inputs.
        variant: What sets it apart from other cases of the same layer.
        make: Builds it; by default it is called with ``config``.
        random: Why values cannot be compared, or "".
        differentiable: Whether there are gradients to compare.
        unstable: Scenarios of which only finiteness is compared.
        **config: Its arguments.

    Example:

    >>> layer("Dense", floats((4, 8)), units=2).title
    'Dense'
    """

    def build(mode):
        made = make() if make else getattr(keras.layers, name)(**config)
        return Subject(made, made)

    return Case(
        "layers",
        name,
        build,
        scenarios,
        variant,
        random=random,
        differentiable=differentiable,
        unstable=unstable,
    )


def _with_losses(make):
    """Build a layer that returns what it adds to the loss beside its output."""

    def build(mode):
        made = make(mode)
        return Subject(lambda x: (made(x), *made.losses), made)

    return build


def _in_model(make):
    """Build a compiled model of a layer that adds to the loss; it returns the loss."""

    def build(mode):
        model = keras.Sequential([make(mode)])
        mode.compile(model, loss="mse")

        def call(x):
            y_pred = model(x, training=True)
            y = keras.ops.zeros(keras.ops.shape(y_pred))
            return model.compute_loss(x=x, y=y, y_pred=y_pred)

        return Subject(call, model)

    return build


class AddsLoss(keras.layers.Layer):
    """A layer of a user's own: it adds the mean square of its output to the loss."""

    def __init__(self, mode):
        super().__init__()
        self.dense = keras.layers.Dense(4)
        self.mean_square = mode.function(_mean_square)

    def call(self, inputs):
        outputs = self.dense(inputs)
        self.add_loss(self.mean_square(outputs))
        return outputs


def _mean_square(x):
    return keras.ops.mean(keras.ops.square(x))


def made(name: str, *args: Any, **config: Any) -> Callable[[], keras.layers.Layer]:
    """Return a function that makes the layer under the policy of the moment."""
    return lambda: getattr(keras.layers, name)(*args, **config)


_DENSE = floats((4, 64), long=(2, LONG))
SEQUENCE = floats((2, 8, 4))
_IMAGE = floats((2, 6, 6, 3))
_VOLUME = floats((2, 4, 4, 4, 2))
BY_RANK = {1: SEQUENCE, 2: _IMAGE, 3: _VOLUME}


def _regular(mode):
    return keras.layers.Dense(4, activity_regularizer="l2")


def _regularization(mode):
    return keras.layers.ActivityRegularization(l1=0.01, l2=0.01)


def _unsaturated(scenarios):
    """Leave out large inputs of a softmax inside a layer: the product before it is in
    16 bits, and rounding 30,000 moves a logit by 8."""
    return {name: scenarios[name] for name in ("ordinary", "small")}


def _dense():
    yield layer("Dense", _DENSE, units=4)
    yield layer(
        "Dense",
        {**_unsaturated(floats((4, 8))), "extreme": logits((4, 8))},
        variant="softmax",
        units=8,
        activation="softmax",
    )
    for variant, build in (
        ("activity_regularizer", _with_losses(_regular)),
        ("activity_regularizer, compiled", _in_model(_regular)),
    ):
        yield Case("layers", "Dense", build, _DENSE, variant)
    yield Case("layers", "Layer", _with_losses(AddsLoss), _DENSE, "add_loss")
    yield Case("layers", "Layer", _in_model(AddsLoss), _DENSE, "add_loss, compiled")
    yield Case(
        "layers",
        "ActivityRegularization",
        _with_losses(_regularization),
        floats((4, 8), long=(2, LONG)),
    )
    equation = dict(equation="abc,cd->abd", output_shape=(None, 4))
    yield layer("EinsumDense", floats((2, 3, 64), long=(1, 2, LONG)), **equation)
    yield layer(
        "EinsumDense",
        _unsaturated(floats((2, 3, 8))),
        variant="softmax",
        activation="softmax",
        **equation,
    )
    yield layer(
        "SpectralNormalization",
        calling(floats((4, 8)), training=True),
        make=lambda: keras.layers.SpectralNormalization(keras.layers.Dense(4)),
    )
    yield layer(
        "SpectralNormalization",
        calling(floats((1, 4, 4, 2)), training=True),
        variant="Conv2D",
        make=lambda: keras.layers.SpectralNormalization(keras.layers.Conv2D(2, 3)),
    )


def _convolutions():
    for rank, scenarios in BY_RANK.items():
        for name in (f"Conv{rank}D", f"Conv{rank}DTranspose"):
            yield layer(name, scenarios, filters=3, kernel_size=2)
        yield layer(
            f"Conv{rank}D",
            _unsaturated(scenarios),
            variant="softmax",
            filters=3,
            kernel_size=2,
            activation="softmax",
        )
    for rank in (1, 2):
        scenarios = BY_RANK[rank]
        yield layer(f"DepthwiseConv{rank}D", scenarios, kernel_size=3)
        yield layer(f"SeparableConv{rank}D", scenarios, filters=4, kernel_size=3)
    yield layer(
        "Conv1D",
        {"long": normal((1, 4, LONG // 4))},
        variant="long",
        filters=2,
        kernel_size=4,
    )


def _norms():
    rows = floats((4, 64), long=(2, LONG))
    offset = {"offset": lambda random: Given(1000 + random.standard_normal((4, 64)))}
    for name in ("LayerNormalization", "RMSNormalization", "UnitNormalization"):
        yield layer(name, {**rows, **offset})
    images = floats((2, 4, 4, 4), long=(1, 128, 128, 8))
    yield layer("GroupNormalization", images, groups=2)
    batches = floats((8, 4, 4, 2), long=(1, 256, 256, 2))
    for training in (True, False):
        yield layer(
            "BatchNormalization",
            calling({**batches, **offset}, training=training),
            variant=f"training={training}",
        )
    unscaled = {"unscaled": lambda random: Given(1e6 * random.standard_normal((8, 4)))}
    yield layer("Normalization", floats((8, 4)), mean=0.5, variance=2.0)
    for invert in (False, True):
        yield layer(
            "Normalization",
            _normalized() if invert else unscaled,
            variant="adapted to 1e6" + (", invert" if invert else ""),
            make=lambda invert=invert: _adapted(invert),
        )


def _normalized():
    """Inputs of an inverse normalization, whose results 16 bits can hold."""
    return {"unscaled": lambda random: Given(0.01 * random.standard_normal((8, 4)))}


def _adapted(invert):
    made = keras.layers.Normalization(invert=invert)
    made.adapt(1e6 * np.random.default_rng(2).standard_normal((64, 4)))
    return made


def _pooling():
    for rank, scenarios in BY_RANK.items():
        for way in ("Average", "Max"):
            yield layer(f"{way}Pooling{rank}D", scenarios, pool_size=2)
            yield layer(f"Adaptive{way}Pooling{rank}D", scenarios, output_size=2)
            name = f"Global{way}Pooling{rank}D"
            long = (1, *{1: (LONG,), 2: (256, 256), 3: (64, 32, 32)}[rank], 2)
            channels = {"long": normal(long)}
            if name == "GlobalAveragePooling1D":
                channels["masked"] = masked((3, 8, 4))
            yield layer(name, {**scenarios, **channels})
    yield layer(
        "AveragePooling1D",
        {"long": normal((1, LONG, 2))},
        variant="pool of 65,536",
        pool_size=LONG,
    )


def _merging():
    pairs = several(floats((4, 8)), 2)
    for name in ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply"):
        yield layer(name, pairs)
        yield Case("layers", name.lower(), _function(name.lower()), pairs)
    yield layer("Subtract", pairs)
    yield Case("layers", "subtract", _function("subtract"), pairs)
    products = several(floats((4, 64), long=(2, LONG)), 2)
    same = {
        "same": lambda random: Given([random.uniform(-300, 300, (4, 64))] * 2),
    }
    yield layer("Dot", products, axes=1)
    yield layer(
        "Dot", {**products, **same}, variant="normalize", axes=1, normalize=True
    )
    yield Case("layers", "dot", _function("dot", axes=1), products)
    yield Case(
        "layers",
        "dot",
        _function("dot", axes=1, normalize=True),
        {**products, **same},
        "normalize",
    )


def _function(name, **config):
    """Build a function of `keras.layers`, which makes a layer on each call."""
    return lambda mode: Subject(lambda x: getattr(keras.layers, name)(x, **config))


def layer_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> {case.kind for case in layer_cases()}
    {'layers'}
    """
    groups = (
        _dense,
        _convolutions,
        _norms,
        _pooling,
        _merging,
    )
    return [case for group in groups for case in group()]
