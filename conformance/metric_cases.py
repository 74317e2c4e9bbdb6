"""The metrics: as an object of one's own, as a function, and in a compiled model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from conformance.cases import LARGE, LONG, Case, Given, Scenario, Subject


def _scenarios(make_true, **predicted) -> dict[str, Scenario]:
    """Scenarios of labels and predictions: a few rows, and more than float16 counts."""

    def scenario(make, rows):
        return lambda random: Given(make_true(random, rows), make(random, rows))

    scenarios = {name: scenario(make, 64) for name, make in predicted.items()}
    return {**scenarios, "long": scenario(predicted["ordinary"], LONG)}


def _share(random, rows):
    # In steps of 1/64, which 16 bits hold, between the thresholds of AUC and others.
    return random.integers(1, 64, (rows, 1)) / 64


def _shares(random, rows):
    return random.integers(1, 64, (rows, 6)) / 64


def _binary(random, rows):
    return random.integers(0, 2, (rows, 1)).astype("float32")


def _multi(random, rows):
    return random.integers(0, 2, (rows, 6)).astype("float32")


def _signs(random, rows):
    return random.choice([-1.0, 1.0], (rows, 6)).astype("float32")


def _distribution(random, rows):
    x = np.exp(random.standard_normal((rows, 6)))
    return x / x.sum(-1, keepdims=True)


def _hot(random, rows):
    return np.eye(6, dtype="float32")[random.integers(0, 6, rows)]


def _classes(random, rows):
    return random.integers(0, 6, rows).astype("int32")


def _real(random, rows):
    return random.standard_normal((rows, 6)).astype("float32")


def _related(random, rows):
    """Predictions for `_real` of the same generator's next draw; not independent."""
    return random.standard_normal((rows, 6))


def _spread(random, rows):
    return random.uniform(-LARGE, LARGE, (rows, 6))


def _tiny(random, rows):
    return 1e-4 * random.standard_normal((rows, 6))


def _absolute(make):
    return lambda random, rows: np.abs(make(random, rows))


def _ends(random, rows):
    return random.choice([-LARGE, 0.0, LARGE], (rows, 6))


_BINARY = _scenarios(_binary, ordinary=_share)
_MULTI = _scenarios(_multi, ordinary=_shares)
_REAL = _scenarios(_real, ordinary=_related, large=_spread, small=_tiny)
_COUNTS = _scenarios(
    _absolute(_real),
    ordinary=_absolute(_related),
    large=_absolute(_spread),
    small=_absolute(_tiny),
)
_MARGINS = _scenarios(_signs, ordinary=_related, large=_spread, small=_tiny)
_CATEGORICAL = _scenarios(_hot, ordinary=_distribution, extreme=_hot)
_CATEGORICAL_LOGITS = _scenarios(_hot, ordinary=_related, large=_spread, extreme=_ends)
_SPARSE = _scenarios(_classes, ordinary=_distribution)
_SPARSE_LOGITS = _scenarios(_classes, ordinary=_related, large=_spread, extreme=_ends)
_DIVERGENCE = _scenarios(_distribution, ordinary=_distribution)

_FROM_LOGITS = dict(from_logits=True)


def _ids(random):
    """Ids of a vocabulary of 100,000, of which every other answer is wrong by one."""
    predicted = np.array([1.0, 2048.0, 4096.0, 61440.0])  # 16 bits hold these
    return Given(predicted + [0, 1, 0, 1], predicted)


def _segments(random):
    """Classes of pixels, predicted as ids."""
    return Given(*(random.integers(0, 6, LONG).astype(float) for _ in range(2)))


_IDS = {"ids": _ids}
_SEGMENTS = {"long": _segments}

#: Each class with its arguments and its inputs.
_CLASSES: tuple[tuple[str, dict[str, Any], Mapping[str, Scenario]], ...] = (
    ("AUC", {}, _BINARY),
    ("AUC", dict(multi_label=True, num_labels=6), _MULTI),
    ("Accuracy", {}, _IDS),
    ("BinaryAccuracy", {}, _MULTI),
    ("BinaryCrossentropy", {}, _MULTI),
    ("BinaryCrossentropy", _FROM_LOGITS, _scenarios(_multi, ordinary=_related)),
    ("BinaryIoU", {}, _BINARY),
    ("CategoricalAccuracy", {}, _CATEGORICAL),
    ("CategoricalCrossentropy", {}, _CATEGORICAL),
    ("CategoricalCrossentropy", _FROM_LOGITS, _CATEGORICAL_LOGITS),
    ("CategoricalHinge", {}, _CATEGORICAL_LOGITS),
    ("ConcordanceCorrelation", {}, _REAL),
    ("CosineSimilarity", {}, _REAL),
    ("F1Score", {}, _CATEGORICAL),
    ("FBetaScore", {}, _CATEGORICAL),
    ("FalseNegatives", {}, _BINARY),
    ("FalsePositives", {}, _BINARY),
    ("Hinge", {}, _MARGINS),
    ("IoU", dict(num_classes=6, target_class_ids=[0, 1]), _SEGMENTS),
    ("KLDivergence", {}, _DIVERGENCE),
    ("LogCoshError", {}, _REAL),
    ("MeanAbsoluteError", {}, _REAL),
    ("MeanAbsolutePercentageError", {}, _REAL),
    ("MeanIoU", dict(num_classes=6), _SEGMENTS),
    ("MeanMetricWrapper", dict(fn=keras.losses.mean_squared_error), _REAL),
    ("MeanSquaredError", {}, _REAL),
    ("MeanSquaredLogarithmicError", {}, _COUNTS),
    ("OneHotIoU", dict(num_classes=6, target_class_ids=[0, 1]), _CATEGORICAL),
    ("OneHotMeanIoU", dict(num_classes=6), _CATEGORICAL),
    ("PearsonCorrelation", {}, _REAL),
    ("Poisson", {}, _COUNTS),
    ("Precision", {}, _BINARY),
    ("PrecisionAtRecall", dict(recall=0.5), _BINARY),
    ("R2Score", {}, _REAL),
    ("Recall", {}, _BINARY),
    ("RecallAtPrecision", dict(precision=0.5), _BINARY),
    ("RootMeanSquaredError", {}, _REAL),
    ("SensitivityAtSpecificity", dict(specificity=0.5), _BINARY),
    ("SparseCategoricalAccuracy", {}, _SPARSE),
    ("SparseCategoricalCrossentropy", {}, _SPARSE),
    ("SparseCategoricalCrossentropy", _FROM_LOGITS, _SPARSE_LOGITS),
    ("SparseTopKCategoricalAccuracy", dict(k=2), _SPARSE),
    ("SpecificityAtSensitivity", dict(sensitivity=0.5), _BINARY),
    ("SquaredHinge", {}, _MARGINS),
    ("TopKCategoricalAccuracy", dict(k=2), _CATEGORICAL),
    ("TrueNegatives", {}, _BINARY),
    ("TruePositives", {}, _BINARY),
)

#: The functions that `keras.losses` has not.
_FUNCTIONS: tuple[tuple[str, dict[str, Any], Mapping[str, Scenario]], ...] = (
    ("binary_accuracy", {}, _MULTI),
    ("categorical_accuracy", {}, _CATEGORICAL),
    ("concordance_correlation", {}, _REAL),
    ("pearson_correlation", {}, _REAL),
    ("sparse_categorical_accuracy", {}, _SPARSE),
    ("sparse_top_k_categorical_accuracy", dict(k=2), _SPARSE),
    ("top_k_categorical_accuracy", dict(k=2), _CATEGORICAL),
)


def _values(random):
    return Given(random.standard_normal(LONG))


def _large_values(random):
    return Given(random.uniform(-LARGE, LARGE, 64))


_SHARED = dict(low_inputs=True, differentiable=False)


def metric_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> {case.kind for case in metric_cases()}
    {'metrics'}
    """
    return [*_objects(), *_functions()]


def _objects() -> Iterator[Case]:
    for name, config, scenarios in _CLASSES:
        variant = "from_logits" if "from_logits" in config else ""
        variant = "multi_label" if "multi_label" in config else variant
        for compiled, build in ((False, _object), (True, _compiled)):
            yield Case(
                "metrics",
                name,
                build(name, config),
                scenarios,
                ", ".join(filter(None, [variant, "compiled" if compiled else ""])),
                fixed=(0,),
                **_SHARED,
            )
    sums = {"long": _values, "large": _large_values}
    for name in ("Mean", "Sum"):
        yield Case("metrics", name, _object(name, {}), sums, **_SHARED)


def _functions() -> Iterator[Case]:
    for name, config, scenarios in _FUNCTIONS:
        yield Case(
            "metrics", name, _function(name, config), scenarios, fixed=(0,), **_SHARED
        )


def _object(name, config):
    """Build a metric that a loop of one's own updates; it returns the result."""

    def build(mode):
        metric = getattr(keras.metrics, name)(**config)
        update = mode.function(metric.update_state)

        def call(*args):
            metric.reset_state()
            update(*args)
            return metric.result()

        return Subject(call)

    return build


def _compiled(name, config):
    """Build a model compiled with the metric; it returns the metric's result."""

    def build(mode):
        model = keras.Sequential([keras.layers.Activation("linear")])
        metric = getattr(keras.metrics, name)(name="result", **config)
        mode.compile(model, loss=None, metrics=[metric])

        predict = tf.function(lambda x: model.predict_step((x,)))

        def call(y_true, x):
            y_pred = predict(x)
            model.reset_metrics()
            return model.compute_metrics(x, y_true, y_pred)["result"]

        return Subject(call)

    return build


def _function(name, config):
    def build(mode):
        function = mode.function(getattr(keras.metrics, name))
        return Subject(lambda y_true, y_pred: function(y_true, y_pred, **config))

    return build
