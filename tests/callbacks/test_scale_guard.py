"""`ScaleGuard`: when it acts, what it does, and what it leaves alone."""

import warnings

import keras
import numpy as np
import pytest
from reference.stateful import Gan
from reference.stateful import X as GAN_X
from reference.stateful import Y as GAN_Y

import keras_mp
from keras_mp import scaling
from keras_mp.callbacks import ScaleGuard

INITIAL = scaling.DynamicLossScale(initial_scale=8.0, growth_interval=1000)


def rows(*good):
    """Return inputs of one row each: 1, or an inf where ``good`` is false."""
    return np.where(np.array(good, bool), 1.0, np.inf)[:, None].astype("float32")


GOOD = rows(*[True] * 40)
EVERY_FOURTH = rows(*[step % 4 for step in range(40)])


def compiled(policy="mixed_float16", optimizer=None, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    if policy == "mixed_float16":
        arguments = {"scaling": INITIAL, **arguments}
    keras_mp.compile(model, optimizer or "sgd", "mse", policy=policy, **arguments)
    return model


def fit(model, x, *guards, **arguments):
    """Fit in steps of one row; return the warnings of the guards."""
    arguments = {"batch_size": 1, "shuffle": False, "verbose": 0, **arguments}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, np.ones((len(x), 1)), callbacks=list(guards), **arguments)
    messages = [str(each.message) for each in caught]
    return [each for each in messages if "ScaleGuard" in each]


def steps_of(model):
    return model.optimizer.stats()["steps"]


# When it acts.


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{}, {"steps_per_execution": 3}, {"run_eagerly": True}], ids=str
)
def test_too_many_skipped_steps_are_reported_once(options):
    guard = ScaleGuard(window=10)
    (message,) = fit(compiled(**options), EVERY_FOURTH, guard, epochs=2)
    assert guard.incidents == [message]
    assert "%), whose gradients were not finite" in message
    assert "loss scale is" in message and "keras_mp.diagnose(model, x, y)" in message


def test_the_numbers_in_the_message_are_those_of_the_window():
    x = rows(*[True] * 10, *[step % 5 for step in range(10)], *[True] * 20)
    (message,) = fit(compiled(), x, ScaleGuard(window=10, max_skipped=0.15))
    assert "skipped 2 of the last 10 steps (20%)" in message
    assert "The loss scale is 2." in message


def test_it_acts_again_after_what_was_wrong_has_been_right():
    x = np.concatenate([EVERY_FOURTH, GOOD, EVERY_FOURTH])
    assert len(fit(compiled(), x, ScaleGuard(window=20))) == 2


def test_short_epochs_add_up_to_a_window():
    guard = ScaleGuard(window=10)
    assert len(fit(compiled(), EVERY_FOURTH[:4], guard, epochs=4)) == 1


def test_a_scale_at_its_floor_has_collapsed():
    x = rows(*[False] * 3, *[True] * 40)
    guard = ScaleGuard(window=20, max_skipped=0.5)
    (message,) = fit(compiled(), x, guard)
    assert "skipped 3 of the last 20 steps" in message
    assert "The loss scale is 1, at its floor of 1" in message


def test_a_floor_may_be_given():
    x = rows(False, *[True] * 30)
    guard = ScaleGuard(window=20, max_skipped=0.5, min_scale=4.0)
    (message,) = fit(compiled(), x, guard)
    assert "The loss scale is 4, at its floor of 4" in message


def test_bfloat16_has_a_budget_and_no_scale():
    model = compiled("mixed_bfloat16")
    (message,) = fit(model, EVERY_FOURTH, ScaleGuard(window=20, min_scale=2.0))
    assert "skipped 5 of the last 20 steps" in message and "scale is" not in message


@pytest.mark.long
def test_each_optimizer_of_a_gan_has_a_window_of_its_own():
    gan = Gan()
    rule = scaling.StaticLossScale(8.0)
    optimizers = keras.optimizers.Adam(), keras.optimizers.SGD()
    keras_mp.compile(gan, *optimizers, policy="mixed_float16", scaling=rule)
    x = np.where(np.arange(32)[:, None] % 4, GAN_X, 1e6)  # the second sees 1e3
    guard = ScaleGuard(window=10)
    with pytest.warns(UserWarning, match="ScaleGuard"):
        gan.fit(x, GAN_Y, batch_size=1, shuffle=False, verbose=0, callbacks=[guard])
    (message,) = guard.incidents
    assert f"'{gan.first_optimizer.name}'" in message


@pytest.mark.parametrize(
    "options", [{}, {"steps_per_execution": 2}, {"run_eagerly": True}], ids=str
)
def test_a_row_of_skipped_steps_is_noticed_as_it_becomes_too_long(options):
    # From the 7th step on, before there is a window of steps.
    x = rows(*[True] * 2, *[False] * 3, True, *[False] * 6, *[True] * 20)
    guard = ScaleGuard("stop", max_in_row=3, window=40)
    model = compiled(**options)
    (message,) = fit(model, x, guard)
    assert "skipped the last 4 steps in a row, whose gradients" in message
    assert steps_of(model) == 10


def test_each_row_is_acted_on_once():
    row = [*[False] * 5, *[True] * 7]
    guard = ScaleGuard(max_skipped=0.99, max_in_row=3, window=10)
    messages = fit(compiled(), rows(*row * 3), guard, epochs=2)
    rows_ = [each for each in messages if "skipped the last 4 steps" in each]
    assert len(rows_) == 6


def test_rows_within_the_budget_are_left_alone():
    x = rows(*[step % 5 > 2 for step in range(100)])  # three of five are skipped
    rule = scaling.StaticLossScale(8.0)
    guard = ScaleGuard("raise", max_skipped=0.9, max_in_row=3)
    assert fit(compiled(scaling=rule), x, guard) == []


def test_a_row_that_goes_on_is_told_beside_the_budget():
    model = compiled(optimizer=keras.optimizers.SGD(0.5))
    guard = ScaleGuard("lower_learning_rate", max_in_row=3, window=10)
    first, *others = fit(model, rows(*[False] * 34), guard)
    assert "falls from 0.5 to 0.25" in first
    assert len(others) == 3  # steps 14, 24 and 34, by the share of skipped steps


def test_a_row_of_spikes_is_named_so():
    rule = keras_mp.SpikeRule(window=8)
    model = compiled("float32", keras.optimizers.SGD(0.0), skip_spikes=rule)
    x = np.random.default_rng(0).normal(1.0, 0.1, size=(20, 1)).astype("float32")
    x[12:] = 1e3
    (message,) = fit(model, x, ScaleGuard("stop", max_in_row=2))
    assert "the last 3 steps in a row" in message and "or were spikes" in message


def test_spikes_are_skipped_steps_too():
    rule = keras_mp.SpikeRule(window=8)
    model = compiled("float32", keras.optimizers.SGD(0.0), skip_spikes=rule)
    x = np.random.default_rng(0).normal(1.0, 0.1, size=(40, 1)).astype("float32")
    x[20::5] = 1e3
    (message,) = fit(model, x, ScaleGuard(window=10))
    assert (
        "skipped 2 of the last 10" in message and "; 2 of them were spikes" in message
    )


# What it does.


def test_stop_ends_the_fit():
    model = compiled()
    (message,) = fit(model, EVERY_FOURTH, ScaleGuard("stop", window=10), epochs=3)
    # Keras looks at `stop_training` after each step.
    assert steps_of(model) == 10 and "Training stops." in message


def test_raise_ends_the_fit_with_what_is_wrong():
    model, guard = compiled(), ScaleGuard("raise", window=10)
    with pytest.raises(RuntimeError, match="skipped 3 of the last 10 steps") as error:
        fit(model, EVERY_FOURTH, guard)
    assert guard.incidents == [str(error.value)]
    assert steps_of(model) == 10


def test_the_learning_rate_falls_once_a_window():
    model = compiled(optimizer=keras.optimizers.SGD(0.5))
    guard = ScaleGuard("lower_learning_rate", window=10, factor=0.5)
    messages = fit(model, np.concatenate([EVERY_FOURTH, GOOD]), guard)
    assert len(messages) == 4  # steps 10, 20, 30 and 40
    assert "falls from 0.5 to 0.25" in messages[0]
    assert float(model.optimizer.learning_rate) == 0.5**5
    assert float(model.optimizer.inner_optimizer.learning_rate) == 0.5**5


def test_a_collapsed_scale_lowers_the_learning_rate_once():
    model = compiled(optimizer=keras.optimizers.SGD(0.5))
    guard = ScaleGuard("lower_learning_rate", window=20, max_skipped=0.5)
    assert len(fit(model, rows(*[False] * 3, *[True] * 97), guard)) == 1
    assert float(model.optimizer.learning_rate) == 0.25


@pytest.mark.parametrize("action", ["warn", "stop", "lower_learning_rate"])
def test_a_schedule_can_be_guarded_but_not_lowered(action):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = compiled(optimizer=keras.optimizers.SGD(schedule))
    guard = ScaleGuard(action, window=10)
    if action == "lower_learning_rate":
        with pytest.raises(ValueError, match="follows a schedule, ExponentialDecay"):
            fit(model, GOOD, guard)
        assert steps_of(model) == 0
    else:
        assert len(fit(model, EVERY_FOURTH, guard)) == 1


def test_a_batch_is_diagnosed():
    model = compiled()
    x = np.full((2, 1), np.nan, "float32")
    batch = x, np.ones((2, 1), "float32")
    (message,) = fit(model, EVERY_FOURTH, ScaleGuard(window=20, batch=batch))
    assert str(keras_mp.diagnose(model, *batch)) in message
    (message,) = fit(model, EVERY_FOURTH, ScaleGuard(window=20, batch=("no", "batch")))
    assert "keras_mp.diagnose(model, *batch) failed" in message


# What it leaves alone.


@pytest.mark.long
@pytest.mark.parametrize("action", ["warn", "stop", "raise", "lower_learning_rate"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_healthy_run_is_the_same_with_it(policy, action):
    guarded, plain = compiled(policy), compiled(policy)
    x = np.random.default_rng(0).normal(size=(100, 1)).astype("float32")
    guard = ScaleGuard(action, window=10, max_in_row=1)
    assert fit(guarded, x, guard, epochs=2) == []
    fit(plain, x, epochs=2)
    assert steps_of(guarded) == 200
    for a, b in zip(guarded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(guarded.optimizer.learning_rate) == float(
        plain.optimizer.learning_rate
    )


def test_overflows_after_growths_are_within_the_budget():
    rule = scaling.DynamicLossScale(initial_scale=2.0**14, growth_interval=20)
    model = compiled(policy=None, scaling=rule, optimizer=keras.optimizers.SGD(0.0))
    x = np.ones((400, 1), "float32")
    x[25::50] = np.inf
    assert fit(model, x, ScaleGuard(window=100)) == []
    assert model.optimizer.stats()["skipped"] == 8


def test_a_first_scale_that_is_too_large_may_fall():
    rule = scaling.DynamicLossScale(initial_scale=2.0**24, growth_interval=1000)
    allowed = keras_mp.Policy("mixed_float16", allow=[keras.layers.Dense])
    model = compiled(allowed, scaling=rule, optimizer=keras.optimizers.SGD(0.0))
    x = np.full((220, 1), 20.0, "float32")  # a gradient of some hundreds
    assert fit(model, x, ScaleGuard()) == []
    assert model.optimizer.stats()["skipped"] > 5


def test_a_scale_that_began_at_its_floor_has_not_collapsed():
    rule = scaling.DynamicLossScale(initial_scale=1.0)
    assert fit(compiled(scaling=rule), GOOD, ScaleGuard(window=10)) == []


def test_a_new_fit_begins_anew():
    model, guard = compiled(), ScaleGuard(window=20)
    assert len(fit(model, EVERY_FOURTH, guard)) == 1
    assert fit(model, GOOD[:19], guard) == [] and guard.incidents == []


def test_a_state_that_was_loaded_is_no_incident():
    model, guard = compiled(), ScaleGuard(window=20)
    store = {}
    model.optimizer.build(model.trainable_variables)
    model.optimizer.save_own_variables(store)
    load = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: model.optimizer.load_own_variables(store)
    )
    assert fit(model, GOOD[:15], load, guard, epochs=4) == []


def test_a_model_without_our_optimizer_is_told_so():
    model = compiled("float32")
    (message,) = fit(model, GOOD, ScaleGuard())
    assert "nothing to guard" in message and "keras_mp.compile" in message


# What it costs.


@pytest.mark.parametrize(
    ("steps", "looks", "arguments"),
    [(1, 10, {}), (5, 8, {}), (1, 10, {"max_in_row": 20}), (1, 20, {"max_in_row": 1})],
)
def test_it_reads_the_device_ten_times_a_window(monkeypatch, steps, looks, arguments):
    guard, looked = ScaleGuard(window=40, **arguments), []
    look = guard._look
    monkeypatch.setattr(guard, "_look", lambda: (looked.append(1), look()))
    assert fit(compiled(steps_per_execution=steps), GOOD, guard) == []
    assert len(looked) == looks


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"action": "shout"}, ValueError, "'warn' or 'stop' or 'raise' or 'lower"),
        ({"max_skipped": 0}, ValueError, "above 0 and below 1"),
        ({"max_skipped": 1.5}, ValueError, "above 0 and below 1"),
        ({"max_skipped": "few"}, TypeError, "Got a str"),
        ({"max_in_row": 0}, ValueError, "max_in_row"),
        ({"max_in_row": 2.5}, TypeError, "whole number"),
        ({"min_scale": -1.0}, ValueError, "above 0"),
        ({"window": 9}, ValueError, "10 or more"),
        ({"window": 20.5}, TypeError, "whole number"),
        ({"factor": 2.0}, ValueError, "below 1"),
        ({"batch": np.ones(3)}, TypeError, r"tuple \(x, y\)"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words) as info:
        ScaleGuard(**arguments)
    assert "ScaleGuard" in str(info.value)
