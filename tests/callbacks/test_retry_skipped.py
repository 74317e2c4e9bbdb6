"""A batch that is tried again trains as if the scale had been lower from the start."""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parents[1]))

from reference.stateful import Gan
from reference.stateful import X as GAN_X
from reference.stateful import Y as GAN_Y
from support.processes import on_two_replicas, strategy_here
from support.updates import assert_same

import keras_mp
from keras_mp import scaling
from keras_mp.callbacks import OverflowMonitor, RetrySkipped
from keras_mp.recording import BatchCallback

#: Batches of 4 rows. The targets of two of them are too large for the first scale.
BATCHES, LARGE = 6, (0, 3)
RULE = scaling.DynamicLossScale(initial_scale=2.0**12, growth_interval=1000)


def data(large=LARGE):
    x = np.random.default_rng(0).normal(size=(4 * BATCHES, 8)).astype("float32")
    y = x[:, :1] ** 2
    for place, batch in enumerate(large):
        # The second one needs a lower scale than the first.
        y[4 * batch] = 2000.0 * 16**place
    return x, y


def compiled(rule=RULE, *, optimizer="adam", policy="mixed_float16", **options):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(8, activation="tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    options = {"metrics": ["mae"], "scaling": rule, **options}
    keras_mp.compile(model, optimizer, "mse", policy=policy, **options)
    return model


class Lower(BatchCallback):
    """Lowers the scale before steps, to what is given for them."""

    def __init__(self, scales):
        super().__init__()
        self.scales = scales

    def before_step(self, step, data):
        if step in self.scales:
            self.model.optimizer.set_scale(self.scales[step])


def fit(model, *callbacks, x=None, **options):
    x, y = data() if x is None else x
    options = {"epochs": 2, "batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options).history


def state(model):
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    variables += model.optimizer.inner_optimizer.variables
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in variables]


def trained_both_ways(**options):
    """Train with retries, and with the scales that they found from the start.

    Returns:
        Both models, and what ``fit`` returned for each; the callback of the first.
    """
    retried, expected = compiled(**options), compiled(**options)
    scales, retry = {}, RetrySkipped(15)
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: scales.setdefault(
            batch + 1, retried.optimizer.stats()["scale"]
        )
    )
    histories = [fit(retried, retry, note)]
    histories.append(fit(expected, Lower(scales)))
    assert expected.optimizer.stats()["skipped"] == 0
    return (retried, expected), histories, retry


OPTIONS = {"plain": {}, "eager": {"run_eagerly": True}}


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("name", OPTIONS)
def test_training_is_what_it_is_with_a_lower_scale(name):
    models, histories, retry = trained_both_ways(**OPTIONS[name])
    # Scales are powers of two: gradients are the same bits at each.
    assert_same(*map(state, models))
    assert histories[0] == histories[1]
    assert (retry.retried, retry.rescued) == (2, 2)
    stats = models[0].optimizer.stats()
    assert stats["applied"] == 2 * BATCHES and stats["skipped"] == stats["backoffs"] > 4


@pytest.mark.long
def test_several_steps_per_execution_are_tried_one_by_one():
    plain, several = compiled(), compiled(steps_per_execution=4)
    for model in (plain, several):
        fit(model, RetrySkipped(15))
    assert_same(state(plain), state(several))
    assert plain.optimizer.stats() == several.optimizer.stats()


@pytest.mark.long
def test_a_micro_batch_gets_into_its_window():
    inner = keras.optimizers.Adam(gradient_accumulation_steps=3)
    config = keras.optimizers.serialize(inner)
    models, histories, _ = trained_both_ways(optimizer=config)
    assert_same(*map(state, models))
    assert histories[0] == histories[1]
    assert int(models[0].optimizer.iterations) == 4


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_replicas_try_again_together(strategy):
    for result in on_two_replicas(strategy, __file__):
        assert result == {"same": True, "history": True, "rescued": 2}


@pytest.mark.long
def test_a_batch_is_tried_so_often_at_most():
    model, retry = compiled(), RetrySkipped(2)
    fit(model, retry, x=data(large=(0,)), epochs=1)
    stats = model.optimizer.stats()
    assert stats["skipped"] == 3 and stats["applied"] == BATCHES - 1
    assert (retry.retried, retry.rescued) == (1, 0)


@pytest.mark.long
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_no_scale_helps_lowers_it_once(value):
    x, y = data(large=())
    x[5] = value
    model, retry = compiled(), RetrySkipped(5)
    fit(model, retry, x=(x, y), epochs=1)
    assert model.optimizer.stats()["skipped"] == 1 and retry.retried == 0
    assert model.optimizer.stats()["scale"] == 2.0**11


@pytest.mark.long
def test_a_scale_at_its_floor_is_not_tried():
    rule = scaling.DynamicLossScale(initial_scale=2.0**12, min_scale=2.0**12)
    model, retry = compiled(rule), RetrySkipped(5)
    fit(model, retry, epochs=1)
    assert model.optimizer.stats()["skipped"] == 2 and retry.retried == 0


def test_a_spike_is_not_tried():
    rule = keras_mp.SpikeRule(window=8)
    model = compiled(scaling.DynamicLossScale(initial_scale=1.0), skip_spikes=rule)
    x, y = data(large=())
    x, y = np.tile(x, (2, 1)), np.tile(y, (2, 1))
    y[-2:] = 500.0
    retry = RetrySkipped(5)
    fit(model, retry, x=(x, y), epochs=1)
    assert model.optimizer.stats()["spikes"] == 1 and retry.retried == 0


@pytest.mark.long
def test_a_running_mean_counts_the_rows_of_a_batch_once():
    model, counts = compiled(), []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: counts.append(
            float(model.metrics[0].count)
        )
    )
    fit(model, RetrySkipped(15), note, epochs=1)
    assert counts == [4.0 * (batch + 1) for batch in range(BATCHES)]


@pytest.mark.long
def test_other_callbacks_see_each_try_as_a_step():
    monitor, seen = OverflowMonitor(), []

    class Seen(BatchCallback):
        def before_step(self, step, data):
            seen.append(step)

    model = compiled()
    with pytest.warns(UserWarning, match="OverflowMonitor"):
        fit(model, monitor, RetrySkipped(15), Seen(), epochs=1)
    assert seen == list(range(1, model.optimizer.stats()["steps"] + 1))
    # The last try of a batch is applied, and so is the last step.
    assert {report.step for report in monitor.reports} < set(seen[:-1])


# What it leaves alone.


@pytest.mark.long
def test_a_healthy_run_is_the_same_with_it(monkeypatch):
    plain, watched = compiled(), compiled()
    counted = []
    counts = type(watched.optimizer).step_counts
    monkeypatch.setattr(
        type(watched.optimizer),
        "step_counts",
        lambda self: counted.append(1) or counts(self),
    )
    x = data(large=())
    assert fit(plain, x=x) == fit(watched, RetrySkipped(), x=x)
    assert_same(state(plain), state(watched))
    assert len(counted) == 1 + 2 * BATCHES  # as it begins, and after each step


@pytest.mark.long
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_model_whose_scale_does_not_fall_is_told_so(policy):
    model, plain = compiled(None, policy=policy), compiled(None, policy=policy)
    with pytest.warns(UserWarning, match="RetrySkipped has nothing to do"):
        history = fit(model, RetrySkipped(), epochs=1)
    assert history == fit(plain, epochs=1)


def test_several_optimizers_are_refused():
    gan = Gan()
    optimizers = keras.optimizers.Adam(), keras.optimizers.SGD()
    keras_mp.compile(gan, *optimizers, policy="mixed_float16")
    with pytest.raises(ValueError, match="holds 3. One that is not skipped"):
        gan.fit(GAN_X, GAN_Y, verbose=0, callbacks=[RetrySkipped()])


@pytest.mark.parametrize(("times", "error"), [(0, ValueError), (1.5, TypeError)])
def test_bad_arguments_are_refused(times, error):
    with pytest.raises(error, match="RetrySkipped"):
        RetrySkipped(times)


def main():
    with strategy_here().scope():
        models, histories, retry = trained_both_ways()
    same = map(np.array_equal, *map(state, models))
    result = {"same": all(same), "history": histories[0] == histories[1]}
    print(json.dumps(result | {"rescued": retry.rescued}))


if __name__ == "__main__":
    main()
