"""The activations and the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from conformance.cases import (
    LARGE,
    LONG,
    Case,
    Given,
    Scenario,
    Subject,
    floats,
    logits,
)

_ACTIVATIONS = (
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish "
    "hard_tanh leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid "
    "silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid sparsemax "
    "squareplus swish tanh tanh_shrink threshold"
).split()

# Those that sum over an axis.
_OVER_AN_AXIS = ("softmax", "log_softmax", "sparsemax")


def _activations() -> Iterator[Case]:
    for name in _ACTIVATIONS:
        over_axis = name in _OVER_AN_AXIS
        scenarios = floats((4, 8), long=(2, LONG) if over_axis else None)
        scenarios["extreme"] = logits((4, 8))
        yield Case("activations", name, _activation(name), scenarios)


def _activation(name):
    """Build the layer of an activation, which is how a user calls it."""

    def build(mode):
        function = getattr(keras.activations, name)
        if name == "threshold":
            return Subject(keras.layers.Activation(lambda x: function(x, 0.5, 0.0)))
        return Subject(keras.layers.Activation(function))

    return build


def _predictions(
    truth: Callable[..., np.ndarray], predicted: Mapping[str, Callable], shape, long
) -> dict[str, Scenario]:
    """Scenarios of labels and predictions.

    Args:
        truth: Makes labels from a generator and a shape.
        predicted: Makes predictions likewise, by scenario.
        shape: Of the predictions, but for the scenario ``long``.
        long: Their shape there.
    """

    def scenario(name, make):
        wanted = long if name.startswith("long") else shape
        return lambda random: Given(truth(random, wanted), make(random, wanted))

    return {name: scenario(name, make) for name, make in predicted.items()}


def _standard(random, shape):
    return random.standard_normal(shape)


def _spread(random, shape):
    return random.uniform(-LARGE, LARGE, shape)


def _ends(random, shape):
    return random.choice([-LARGE, 0.0, LARGE], shape)


def _share(random, shape):
    return random.uniform(0.02, 0.98, shape)


def _certain(random, shape):
    """Probabilities that are 0 and 1, as a saturated sigmoid gives them."""
    return random.integers(0, 2, shape).astype(float)


def _positive(make):
    return lambda random, shape: np.abs(make(random, shape))


def _scaled(make, factor):
    return lambda random, shape: factor * make(random, shape)


def _distribution(random, shape):
    x = np.exp(random.standard_normal(shape))
    return x / x.sum(-1, keepdims=True)


def _one_class(random, shape):
    """Probabilities of which one is 1, as a saturated softmax gives them."""
    chosen = random.integers(0, shape[-1], (*shape[:-1], 1))
    return (np.arange(shape[-1]) == chosen).astype(float)


def _binary(random, shape):
    return random.integers(0, 2, shape).astype("float32")


def _signs(random, shape):
    return random.choice([-1.0, 1.0], shape).astype("float32")


def _hot(random, shape):
    return _one_class(random, shape).astype("float32")


def _classes(random, shape):
    return random.integers(0, shape[-1], shape[:-1]).astype("int32")


_ROWS, _LONG_ROWS = (4, 8), (2, LONG)

_REAL = {
    "ordinary": _standard,
    "small": _scaled(_standard, 1e-4),
    "large": _spread,
    "long": _standard,
}
_REGRESSION = _predictions(_standard, _REAL, _ROWS, _LONG_ROWS)
_COUNTS = _predictions(
    _positive(_standard),
    {name: _positive(make) for name, make in _REAL.items()},
    _ROWS,
    _LONG_ROWS,
)
_PROBABILITIES = {
    "ordinary": _share,
    "small": _scaled(_share, 1e-4),
    "extreme": _certain,
    "long": _share,
}
_BINARY = _predictions(_binary, _PROBABILITIES, _ROWS, _LONG_ROWS)
_LOGITS = {
    "ordinary": _standard,
    "small": _scaled(_standard, 1e-4),
    "large": _spread,
    "extreme": _ends,
    "long": _standard,
}
_BINARY_LOGITS = _predictions(_binary, _LOGITS, _ROWS, _LONG_ROWS)
_MARGINS = _predictions(_signs, _REAL, _ROWS, _LONG_ROWS)
_DISTRIBUTIONS = {
    "ordinary": _distribution,
    "extreme": _one_class,
    "long": _distribution,
}
_CATEGORICAL = _predictions(_hot, _DISTRIBUTIONS, _ROWS, _LONG_ROWS)
_CATEGORICAL_LOGITS = _predictions(_hot, _LOGITS, _ROWS, _LONG_ROWS)
_SPARSE = _predictions(_classes, _DISTRIBUTIONS, _ROWS, _LONG_ROWS)
_SPARSE_LOGITS = _predictions(_classes, _LOGITS, _ROWS, _LONG_ROWS)
_DIVERGENCE = _predictions(_distribution, _DISTRIBUTIONS, _ROWS, _LONG_ROWS)
_EMBEDDINGS = _predictions(
    lambda random, shape: np.arange(shape[0], dtype="int32") % 2,
    {"ordinary": lambda random, shape: _unit(_standard(random, shape))},
    _ROWS,
    _LONG_ROWS,
)
_SPEECH = _predictions(
    lambda random, shape: random.integers(1, shape[-1], (shape[0], 3)).astype("int32"),
    {name: make for name, make in _LOGITS.items() if name != "long"},
    (2, 10, 6),
    None,
)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


_FROM_LOGITS = dict(from_logits=True)

#: Each loss as class and as function, with its arguments and its inputs.
_LOSSES: tuple[tuple[str, str, dict[str, Any], Mapping[str, Scenario]], ...] = (
    ("BinaryCrossentropy", "binary_crossentropy", {}, _BINARY),
    ("BinaryCrossentropy", "binary_crossentropy", _FROM_LOGITS, _BINARY_LOGITS),
    ("BinaryFocalCrossentropy", "binary_focal_crossentropy", {}, _BINARY),
    (
        "BinaryFocalCrossentropy",
        "binary_focal_crossentropy",
        _FROM_LOGITS,
        _BINARY_LOGITS,
    ),
    ("CTC", "ctc", {}, _SPEECH),
    ("CategoricalCrossentropy", "categorical_crossentropy", {}, _CATEGORICAL),
    (
        "CategoricalCrossentropy",
        "categorical_crossentropy",
        _FROM_LOGITS,
        _CATEGORICAL_LOGITS,
    ),
    (
        "CategoricalFocalCrossentropy",
        "categorical_focal_crossentropy",
        {},
        _CATEGORICAL,
    ),
    (
        "CategoricalFocalCrossentropy",
        "categorical_focal_crossentropy",
        _FROM_LOGITS,
        _CATEGORICAL_LOGITS,
    ),
    (
        "CategoricalGeneralizedCrossEntropy",
        "categorical_generalized_cross_entropy",
        dict(q=0.5),
        _SPARSE,
    ),
    ("CategoricalHinge", "categorical_hinge", {}, _CATEGORICAL_LOGITS),
    ("Circle", "circle", {}, _EMBEDDINGS),
    ("CosineSimilarity", "cosine_similarity", {}, _REGRESSION),
    ("Dice", "dice", {}, _BINARY),
    ("Hinge", "hinge", {}, _MARGINS),
    ("Huber", "huber", {}, _REGRESSION),
    ("KLDivergence", "kl_divergence", {}, _DIVERGENCE),
    ("LogCosh", "log_cosh", {}, _REGRESSION),
    ("MeanAbsoluteError", "mean_absolute_error", {}, _REGRESSION),
    ("MeanAbsolutePercentageError", "mean_absolute_percentage_error", {}, _REGRESSION),
    ("MeanSquaredError", "mean_squared_error", {}, _REGRESSION),
    ("MeanSquaredLogarithmicError", "mean_squared_logarithmic_error", {}, _COUNTS),
    ("Poisson", "poisson", {}, _COUNTS),
    ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy", {}, _SPARSE),
    (
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        _FROM_LOGITS,
        _SPARSE_LOGITS,
    ),
    ("SquaredHinge", "squared_hinge", {}, _MARGINS),
    ("Tversky", "tversky", {}, _BINARY),
)


def _losses() -> Iterator[Case]:
    for cls, function, config, scenarios in _LOSSES:
        variant = "from_logits" if "from_logits" in config else ""
        shared = dict(scenarios=scenarios, fixed=(0,), low_inputs=True)
        weighted = {**scenarios, "masked": _weighted(scenarios["ordinary"])}
        yield Case(
            "losses",
            cls,
            _loss_object(cls, config),
            variant=variant,
            **{**shared, "scenarios": weighted},
        )
        yield Case(
            "losses", function, _called(function, config), variant=variant, **shared
        )
        yield Case(
            "losses",
            function,
            _compiled(function, config),
            variant=", ".join(filter(None, [variant, "compiled"])),
            **shared,
        )


def _weighted(scenario):
    """The same scenario with a row that does not count."""

    def make(random):
        given = scenario(random)
        rows = given.args[1].shape[0]
        weights = (np.arange(rows) > 0).astype("float32")
        return Given(*given.args, sample_weight=weights)

    return make


def _loss_object(name, config):
    return lambda mode: Subject(getattr(keras.losses, name)(**config))


def _with_config(function, config):
    """The loss of two arguments, as a loop of one's own and ``compile`` need it."""

    def loss(y_true, y_pred):
        return function(y_true, y_pred, **config)

    return loss if config else function


def _called(name, config):
    def build(mode):
        function = getattr(keras.losses, name)
        return Subject(mode.function(_with_config(function, config)))

    return build


def _compiled(name, config):
    """Build a model compiled with the function; it returns the loss."""

    def build(mode):
        model = keras.Sequential([keras.layers.Activation("linear")])
        function = _with_config(getattr(keras.losses, name), config)
        mode.compile(model, loss=function)

        def call(y_true, x):
            y_pred = model(x, training=True)
            return model.compute_loss(x=x, y=y_true, y_pred=y_pred)

        return Subject(call)

    return build


def function_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> sorted({case.kind for case in function_cases()})
    ['activations', 'losses']
    """
    return [*_activations(), *_losses()]
