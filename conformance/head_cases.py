"""The last layer of a model with its loss, as `fit` brings them together.

At a confident mistake, float32 has a gradient of 1 where a sigmoid in 16 bits is 1 and
the loss, which sees nothing else, has none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from conformance.cases import Case, Given, Subject

_LOGITS = (7.0, 10.0, 20.0)


def _opposite_bits(logits):
    return (logits < 0).astype("float32")


def _opposite_signs(logits):
    return -np.sign(logits).astype("float32")


def _other_class(logits):
    """The class after the one that the logits are for."""
    return ((logits.argmax(-1) + 1) % logits.shape[-1]).astype("int32")


def _hot(logits):
    return np.eye(logits.shape[-1], dtype="float32")[_other_class(logits)]


def _speech(logits):
    """Classes after the one that the logits are for; CTC takes none of 0."""
    return np.maximum(_other_class(logits)[:, :2], 1)


def _small(logits):
    return np.full(logits.shape, 0.25, "float32")


def _each(random):
    """Logits of outputs on their own, of both signs."""
    return np.array(_LOGITS)[:, None] * random.choice([-1.0, 1.0], (len(_LOGITS), 4))


def _rows(random):
    """Logits of classes, of which one is chosen in each row."""
    chosen = np.eye(4)[random.integers(0, 4, len(_LOGITS))]
    return np.array(_LOGITS)[:, None] * chosen


def _frames(random):
    """The same for each of six frames."""
    return np.stack([_rows(random) for _ in range(6)], axis=1)


def _positive(random):
    return np.abs(_each(random))


#: The losses that take the logits from behind the activation.
_SEEING = (
    ("sigmoid", "BinaryCrossentropy", "binary_crossentropy", _each, _opposite_bits),
    (
        "sigmoid",
        "BinaryFocalCrossentropy",
        "binary_focal_crossentropy",
        _each,
        _opposite_bits,
    ),
    ("softmax", "CategoricalCrossentropy", "categorical_crossentropy", _rows, _hot),
    (
        "softmax",
        "CategoricalFocalCrossentropy",
        "categorical_focal_crossentropy",
        _rows,
        _hot,
    ),
    (
        "softmax",
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        _rows,
        _other_class,
    ),
)

#: The others: activations, losses, logits and labels.
_OTHERS = (
    (
        ("sigmoid", "hard_sigmoid"),
        ("Dice", "Tversky", "MeanSquaredError", "MeanAbsoluteError", "Huber"),
        _each,
        _opposite_bits,
    ),
    (("hard_sigmoid",), ("BinaryCrossentropy",), _each, _opposite_bits),
    (("sigmoid",), ("KLDivergence", "Poisson", "LogCosh"), _each, _opposite_bits),
    (
        ("softmax",),
        (
            "KLDivergence",
            "CategoricalHinge",
            "CosineSimilarity",
            "Dice",
            "MeanSquaredError",
        ),
        _rows,
        _hot,
    ),
    (("softmax",), ("CategoricalGeneralizedCrossEntropy",), _rows, _other_class),
    (
        ("sparsemax",),
        ("KLDivergence", "CategoricalCrossentropy", "MeanSquaredError"),
        _rows,
        _hot,
    ),
    (
        ("tanh", "softsign", "hard_tanh", "linear"),
        ("Hinge", "SquaredHinge", "MeanSquaredError", "CosineSimilarity"),
        _each,
        _opposite_signs,
    ),
    (("tanh",), ("MeanAbsoluteError", "Huber", "LogCosh"), _each, _opposite_signs),
    (
        ("relu", "softplus", "exponential", "squareplus"),
        ("Poisson", "MeanSquaredLogarithmicError"),
        _positive,
        _small,
    ),
    (("softplus",), ("MeanAbsolutePercentageError",), _positive, _small),
    (("linear",), ("CategoricalHinge",), _rows, _hot),
    (("linear",), ("CTC",), _frames, _speech),
)


def _dense(**config):
    """A layer whose product hands on what comes in."""
    return keras.layers.Dense(4, kernel_initializer="identity", **config)


def _as_argument(activation, shape):
    return keras.Sequential([keras.Input(shape), _dense(activation=activation)])


def _as_layer(activation, shape):
    return keras.Sequential(
        [keras.Input(shape), _dense(), keras.layers.Activation(activation)]
    )


def _as_operation(activation, shape):
    inputs = keras.Input(shape)
    function = getattr(keras.ops, activation)
    return keras.Model(inputs, function(_dense()(inputs)))


class Own(keras.Model):
    """A model of a user's own, which may end its ``call`` with a function."""

    def __init__(self, dense, function=lambda x: x):
        super().__init__()
        self.dense, self.end = dense, function

    def call(self, inputs):
        return self.end(self.dense(inputs))


def _own(shape, *parts):
    model = Own(*parts)
    model(np.zeros((1, *shape), "float32"))
    return model


def _as_returned(activation, shape):
    return _own(shape, _dense(activation=activation))


def _as_code(activation, shape):
    return _own(shape, _dense(), getattr(keras.activations, activation))


#: The ways to put an activation at the end of a model.
_FORMS = {
    "an argument": _as_argument,
    "a layer": _as_layer,
    "an operation": _as_operation,
    "an argument, subclassed": _as_returned,
    "code": _as_code,
}


def _step(model):
    """Return a function of labels and inputs: the loss of a step of the model's."""
    compute_loss, losses = model.compute_loss, []

    def kept(*args, **kwargs):
        losses.append(compute_loss(*args, **kwargs))
        return losses[-1]

    model.compute_loss = kept

    @tf.function
    def step(y_true, x):
        model.test_step((x, y_true))
        return losses.pop()

    return step


def _case(activation, name, loss, logits, labels, form, variant):
    def build(mode):
        shape = logits(np.random.default_rng(0)).shape[1:]
        model = _FORMS[form](activation, shape)
        mode.compile(model, loss=loss() if callable(loss) else loss)
        return Subject(_step(model), model)

    def confident(random):
        x = logits(random)
        return Given(labels(x), x)

    scenarios = {"confident": confident}
    return Case("losses", name, build, scenarios, variant, fixed=(0,))


def _seeing() -> Iterator[Case]:
    for activation, name, function, *data in _SEEING:
        each = getattr(keras.losses, name)
        for form in _FORMS:
            variant = f"{activation} as {form}"
            yield _case(activation, name, each, *data, form, variant)
        variant = f"{activation}, from_logits"
        with_logits = functools.partial(each, from_logits=True)
        yield _case("linear", name, with_logits, *data, "an argument", variant)
        called = getattr(keras.losses, function)
        for what, loss in (("name", function), ("function", lambda it=called: it)):
            variant = f"{activation}, by {what}"
            yield _case(activation, function, loss, *data, "an argument", variant)


def _others() -> Iterator[Case]:
    for activations, names, *data in _OTHERS:
        for activation in activations:
            for name in names:
                loss = getattr(keras.losses, name, None)
                variant = f"behind {activation}"
                yield _case(activation, name, loss, *data, "an argument", variant)


def _near(**config):
    """A layer of predictions that lie closely around its bias."""
    return keras.layers.Dense(1, kernel_initializer="ones", **config)


def _shifted(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, _near()(inputs) + 2000.0)


_AT_2000 = keras.initializers.Constant(2000.0)

#: The ways to predict numbers around 2,000: as years are.
REGRESSIONS = {
    "a bias": lambda shape: keras.Sequential(
        [keras.Input(shape), _near(bias_initializer=_AT_2000)]
    ),
    "an operation": _shifted,
    "a bias, subclassed": lambda shape: _own(shape, _near(bias_initializer=_AT_2000)),
}


def _regression() -> Iterator[Case]:
    """Predictions, of which 16 bits have a few around 2,000, less those 2,000."""
    x = np.linspace(-2, 2, 64)[:, None]
    for name in (
        "Huber",
        "LogCosh",
        "MeanAbsoluteError",
        "MeanAbsolutePercentageError",
        "MeanSquaredError",
        "MeanSquaredLogarithmicError",
        "Poisson",
    ):
        for form, make in REGRESSIONS.items():

            def build(mode, make=make, name=name):
                model = make((1,))
                mode.compile(model, loss=getattr(keras.losses, name)())
                step = tf.function(lambda x: model.predict_step((x,)) - 2000.0)
                return Subject(step, model)

            scenarios = {"predictions": lambda random: Given(x)}
            variant = f"2,000 by {form}"
            yield Case("losses", name, build, scenarios, variant, differentiable=False)


def head_cases() -> list[Case]:
    """Return the cases of this module.

    Example:

    >>> {case.kind for case in head_cases()}
    {'losses'}
    """
    return [*_seeing(), *_others(), *_regression()]
