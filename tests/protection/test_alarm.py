"""A run that only skips says so by itself."""

import re
import warnings

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import scaling

X = np.ones((120, 1), "float32")
GOOD, BAD = np.zeros_like(X), np.full_like(X, np.inf)


def compiled(rule="dynamic", **arguments):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(1e-6)
    keras_mp.compile(model, optimizer, "mse", scaling=rule, **arguments)
    return model


def alarms(model, y, x=X, **arguments):
    """Fit ``model`` in steps of one row; return its warnings of steps skipped."""
    arguments = {"batch_size": 1, "shuffle": False, "verbose": 0, **arguments}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x[: len(y)], y, **arguments)
    found = [each for each in caught if "has skipped" in str(each.message)]
    assert {each.filename for each in found} <= {__file__}
    return [str(each.message) for each in found]


def test_a_forward_pass_that_overflows_is_named_once():
    (message,) = alarms(compiled(), BAD, epochs=2)
    assert "all 50 training steps" in message and "50 steps had a loss" in message
    for word in ("forward pass", "-1e9", "keras_mp.lint", "float32=", "bfloat16"):
        assert word in message


def test_gradients_that_overflow_are_named():
    rule = scaling.StaticLossScale(2.0**127)
    (message,) = alarms(compiled(rule), GOOD + 9.0)
    assert "forward pass is finite" in message and "smaller one" in message
    assert "0 steps had a loss" in message


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 7}],
    ids=str,
)
def test_steps_of_any_kind(options):
    assert len(alarms(compiled(**options), BAD[:60])) == 1


def test_epochs_shorter_than_that():
    # A bare run of five steps an epoch is looked at after its 50th step at the latest.
    model = compiled()
    assert len(alarms(model, BAD[:5], epochs=10)) == 1
    assert len(alarms(model, BAD[:5])) == 1  # each fit says so


def test_twenty_in_a_row_after_one_that_was_applied():
    model = compiled()
    good = np.concatenate([GOOD[:10], BAD[:19]])
    assert alarms(model, good) == []
    (message,) = alarms(model, np.concatenate([GOOD[:1], BAD[:20]]))
    assert "the last 20 training steps" in message


@pytest.mark.parametrize("rule", ["dynamic", "log_normal"])
def test_a_scale_that_is_still_searched_for_is_no_alarm(rule):
    allowed = keras_mp.Policy("mixed_float16", allow=[keras.layers.Dense])
    model = compiled(rule, policy=allowed)
    # A gradient of 600 fits float16 at a scale of 64.
    assert alarms(model, GOOD + 300.0) == []
    assert model.optimizer.stats()["backoffs"] > 5


def test_runs_that_recover_or_skip_now_and_then_are_no_alarm():
    y = GOOD.copy()
    y[::3] = np.inf
    assert alarms(compiled(), y, epochs=3) == []


class Root(keras.layers.Layer):
    """Its gradient at 0 is not finite."""

    def call(self, x):
        return keras.ops.sqrt(x)


@pytest.mark.parametrize(
    ("last", "y", "words"),
    [
        ([], BAD, "forward pass has no finite result"),
        ([Root()], GOOD + 1.0, "forward pass is finite.*sqrt"),
    ],
    ids=["forward", "backward"],
)
def test_where_nothing_is_scaled_no_scale_is_advised(last, y, words):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), *last])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16")
    (message,) = alarms(model, y, x=np.zeros_like(X))
    assert re.search(words, message) and "all 50 training steps" in message
    assert not any(word in message for word in ("loss scale", "smaller", "65,504"))


def test_a_bare_optimizer_raises_none():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    keras_mp.compile(model, "sgd", "mse", policy="mixed_bfloat16", guard=False)
    assert alarms(model, BAD) == []


def test_beside_scaler_stats():
    stats = keras_mp.callbacks.ScalerStats()
    with pytest.warns(UserWarning, match="None of the last 120 training steps"):
        with pytest.warns(UserWarning, match="has skipped all 50"):
            compiled().fit(X, BAD, batch_size=1, verbose=0, callbacks=[stats])
