"""Callbacks see the batch of each step; training is bit for bit what it is alone."""

import functools
import itertools
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.processes import make_strategy, run_alone, run_workers
from support.updates import assert_same

import keras_mp
from keras_mp import watching
from keras_mp.recording import BatchCallback, share

pytestmark = pytest.mark.long

ROWS = 22  # of batches of 4, the last is of 2


def data(rows=ROWS):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 8)).astype("float32")
    return x, x[:, :2] ** 2


class Seen(BatchCallback):
    """Notes what it is called with."""

    def __init__(self, model=None):
        super().__init__()
        self.events, self.rows = [], []

    def before_step(self, step, data):
        self.events.append(("before", step))
        batch = share(self.model, data)
        self.rows.append(None if batch.x is None else np.asarray(batch.x))

    def after_step(self, step, data, logs):
        self.events.append(("after", step))


class OwnStep(keras.Sequential):
    """A step as Keras's guide has it, of a model without metrics."""

    @property
    def metrics(self):
        return []

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(scaled, weights), weights, strict=True)
        )
        return {"loss": loss}


class Shards(keras.utils.PyDataset):
    def __len__(self):
        return -(-ROWS // 4)

    def __getitem__(self, index):
        x, y = data()
        rows = slice(4 * index, 4 * index + 4)
        return x[rows], y[rows]


def compiled(ours=True, cls=keras.Sequential, **options):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float32" if ours else "mixed_float16")
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(2, dtype="float32"),
    ]
    model = cls(layers)
    if ours:
        keras_mp.compile(
            model, "adam", "mse", metrics=["mae"], policy="mixed_float16", **options
        )
    else:
        model.compile("adam", "mse", metrics=["mae"], **options)
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in variables]


ARRAYS = dict(zip("xy", data(), strict=True), batch_size=4, shuffle=False)
WAYS = {
    "arrays": lambda: ARRAYS,
    "weighted": lambda: ARRAYS | {"sample_weight": np.arange(ROWS)},
    "tf.data": lambda: {
        "x": tf.data.Dataset.from_tensor_slices(data()).batch(4),
        "shuffle": False,
    },
    "PyDataset": lambda: {"x": Shards(), "shuffle": False},
    "generator": lambda: {
        "x": (Shards()[index] for index in itertools.cycle(range(6))),
        "steps_per_epoch": 6,
        "shuffle": False,
    },
    "endless": lambda: {
        "x": tf.data.Dataset.from_tensor_slices(data()).batch(4).repeat(),
        "steps_per_epoch": 5,
        "shuffle": False,
    },
}
OPTIONS = {
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "several": {"steps_per_execution": 4},
    "several eager": {"steps_per_execution": 4, "run_eagerly": True},
    "own step": {"cls": OwnStep},
}


def trained(callbacks, way="arrays", ours=True, epochs=2, **options):
    model = compiled(ours, **options)
    epochs = 1 if way == "generator" else epochs
    arguments = {"epochs": epochs, "verbose": 0} | WAYS[way]()
    return model, model.fit(callbacks=callbacks, **arguments).history


@functools.cache
def left_alone(way, ours):
    """Return the state and the history of training without a callback.

    Where it is the same batches, it is the same training.
    """
    if way in ("tf.data", "PyDataset"):
        return left_alone("arrays", ours)
    model, history = trained([], way, ours)
    return state(model), history


@pytest.mark.every(5)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "keras"])
@pytest.mark.parametrize("way", WAYS)
def test_kinds_of_data(way, ours):
    alone, expected = left_alone(way, ours)
    seen = Seen()
    model, history = trained([seen], way, ours)
    assert history == expected
    assert_same(state(model), alone)
    epochs = 1 if way == "generator" else 2
    x, _ = data()
    batches = [x[row : row + 4] for row in range(0, ROWS, 4)]
    if way == "endless":
        assert_same(seen.rows, (2 * batches)[:10])
    else:
        assert_same(seen.rows, epochs * batches)
    steps = range(1, 1 + len(seen.rows))
    assert seen.events == [(when, n) for n in steps for when in ("before", "after")]


@pytest.mark.every(3)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "keras"])
@pytest.mark.parametrize("option", OPTIONS)
def test_kinds_of_steps(option, ours):
    alone, expected = trained([], ours=ours, **OPTIONS[option])
    seen = Seen()
    model, history = trained([seen], ours=ours, **OPTIONS[option])
    assert history == expected
    assert_same(state(model), state(alone))
    steps = range(1, 13)
    assert seen.events == [(when, n) for n in steps for when in ("before", "after")]


def test_several_steps_in_an_execution_that_the_data_do_not_fill():
    # 5 steps an epoch in executions of 4: Keras takes 8 where the data have them.
    alone, expected = trained([], "endless", steps_per_execution=4)
    seen = Seen()
    model, history = trained([seen], "endless", steps_per_execution=4)
    assert history == expected and len(seen.rows) == 16
    assert_same(state(model), state(alone))


@pytest.mark.filterwarnings("ignore:.*ran out of data")
@pytest.mark.parametrize("several", [1, 4])
def test_data_that_end_before_the_epoch(several):
    def run(callbacks):
        model = compiled(steps_per_execution=several)
        batches = tf.data.Dataset.from_tensor_slices(data()).batch(4)
        history = model.fit(
            batches,
            steps_per_epoch=9,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        return model, history.history

    alone, expected = run([])
    model, history = run([Seen()])
    assert history == expected
    assert_same(state(model), state(alone))


def test_nothing_is_replaced_without_a_listener():
    model, _ = trained([], ours=False)
    step = model.train_function
    assert "make_train_function" not in vars(model)
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[Seen()])
    assert model.train_function is step
    during = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: during.append(model.train_function)
    )
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[look])
    assert set(during) == {step}


def test_several_listeners_and_steps_count_anew_in_each_fit():
    one, other = Seen(), Seen()
    model, _ = trained([one, other], epochs=1)
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[other])
    assert [step for _, step in one.events][::2] == [1, 2, 3, 4, 5, 6]
    assert [step for _, step in other.events][::2] == 2 * [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "keras"])
def test_a_fit_that_failed_leaves_no_listener(ours):
    class Failing(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                raise RuntimeError("enough")

    seen = Seen()
    with pytest.raises(RuntimeError, match="enough"):
        trained([seen, Failing()], ours=ours)
    model, before = seen.model, list(seen.events)
    assert len(before) == 4
    other = Seen()
    model.fit(*data(), batch_size=4, verbose=0)
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[other])
    assert seen.events == before and len(other.events) == 12


def test_a_function_that_is_made_anew_is_listened_to():
    class Anew(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.make_train_function(force=True)

    seen = Seen()
    trained([seen, Anew()])
    assert len(seen.rows) == 12


def test_looks_at_the_device_count_each_step():
    model, looks = compiled(steps_per_execution=3), []

    def begin():
        def look():
            looks.append(model.optimizer.stats()["steps"])
            return ()

        return look

    watching.watch(model, "looks", begin)
    x, y = data(4)
    endless = tf.data.Dataset.from_tensors((x, y)).repeat()
    model.fit(
        endless, steps_per_epoch=120, shuffle=False, verbose=0, callbacks=[Seen()]
    )
    assert looks == [1, 50, 100, 120]


def test_validation_is_not_listened_to():
    seen = Seen()
    model = compiled()
    x, y = data()
    model.fit(x, y, batch_size=4, validation_data=(x, y), verbose=0, callbacks=[seen])
    assert len(seen.rows) == 6


# Under a strategy; each in a process of its own.


@functools.cache
def run_group(group):
    return run_alone(__file__, group)


@pytest.mark.parametrize("several", ["1", "3"])
def test_under_a_mirrored_strategy(several):
    result = run_group("mirrored")[several]
    assert result["same"]
    # Batches of 4 on two replicas; the last has one row, of the first replica.
    assert result["rows"] == 2 * [2, 2, 1]


def test_under_a_multi_worker_strategy():
    for found in run_workers(__file__, "workers"):
        result = found["1"]
        assert result["same"] and result["rows"] == [2, 2, 2, 2]


def _under(strategy, several, rows):
    def run(callbacks):
        with strategy.scope():
            model = compiled(steps_per_execution=several)
        x, y = data(rows)
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        history = model.fit(
            batches.with_options(options),
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        return model, history.history

    alone, expected = run([])
    seen = Seen()
    model, history = run([seen])
    same = all(
        a.tobytes() == b.tobytes()
        for a, b in zip(state(model), state(alone), strict=True)
    )
    same = same and history == expected
    return {"same": same, "rows": [len(each) for each in seen.rows]}


def group_mirrored():
    strategy = make_strategy("mirrored-2")
    return {several: _under(strategy, int(several), 9) for several in "13"}


def group_workers():
    return {"1": _under(make_strategy("multi-worker-2"), 1, 8)}


if __name__ == "__main__":
    print(json.dumps(globals()[f"group_{sys.argv[1]}"]()))
