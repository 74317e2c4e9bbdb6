"""Data that a layer rounds beyond recognition is warned of, by the input's name."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from support.processes import mirrored, run_alone

import keras_mp

SMALL = np.linspace(-1, 1, 8, dtype="float32").reshape(4, 2)
LARGE = 1e6 * SMALL
IDS = np.array([[1, 2], [3, 4], [5, 2049], [7, 8]], "float32")
TARGET = SMALL[:, :1]


def functional():
    price, rest = keras.Input((2,), name="price"), keras.Input((2,), name="rest")
    flat = layers.Flatten(name="flat")(price)
    x = layers.Concatenate(name="both")([layers.Dense(2, name="reads")(flat), rest])
    x = layers.Dense(1, name="mixes")(x)
    return keras.Model([price, rest], layers.Dense(1, name="head")(x), name="net")


def reads_and_head():
    return [layers.Dense(1, name="reads"), layers.Dense(1, name="head")]


def sequential():
    # The last layer is a head, which computes in float32.
    price = keras.Input((2,), name="price")
    return keras.Sequential([price, *reads_and_head()], name="net")


def unbuilt():
    return keras.Sequential([layers.Flatten(), *reads_and_head()], name="net")


class Net(keras.Model):
    def __init__(self, inner=None):
        super().__init__(name="net")
        self.inner = inner or layers.Dense(1, name="reads")
        self.head = layers.Dense(1)

    def call(self, x):
        return self.head(self.inner(x))


class Pairs(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.both = layers.Dense(1)

    def call(self, x):
        return self.both(x["price"]) + self.both(x["rest"])


def mean(y, y_pred):
    return ops.mean(y_pred)


def compiled(model, policy="mixed_float16", **kwargs):
    keras_mp.compile(model, "sgd", mean, policy=policy, **kwargs)
    return model


def fit(model, *data, **kwargs):
    """Fit ``model``, and return the warnings of its inputs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(*data, verbose=0, **kwargs)
    found = [each for each in caught if "Input '" in str(each.message)]
    assert {each.filename for each in found} <= {__file__}  # the line of model.fit
    return [str(each.message) for each in found]


def warned(model, x, policy="mixed_float16"):
    return fit(compiled(model, policy), x, TARGET)


@pytest.mark.parametrize("make", [sequential, functional])
def test_numbers_beyond_float16_are_named(make):
    x = LARGE if make is sequential else [LARGE, SMALL]
    (message,) = warned(make(), x)
    assert "Input 'price' of model 'net' holds 1e+06" in message
    assert "'reads' (Dense) reads it in float16" in message
    assert "ends at 65,504" in message and "float32=['reads']" in message


@pytest.mark.parametrize(
    "x", [{"price": LARGE, "rest": SMALL}, (LARGE, SMALL)], ids=type
)
def test_inputs_in_any_structure(x):
    assert "'price'" in warned(functional(), x)[0]


@pytest.mark.long
def test_structures_change_and_names_stay():
    model = compiled(functional())
    assert "'rest'" in fit(model, [SMALL, LARGE], TARGET)[0]
    swapped = {"rest": SMALL, "price": LARGE}
    assert ["'price'" in each for each in fit(model, swapped, TARGET)] == [True]
    assert ["'rest'" in each for each in fit(model, [SMALL, LARGE], TARGET)] == [True]


def test_an_input_behind_layers_that_follow():
    (message,) = warned(functional(), [SMALL, LARGE])
    assert "'rest'" in message and "'mixes'" in message


@pytest.mark.long
def test_a_subclassed_model_rounds_by_itself():
    (message,) = warned(Net(), LARGE)
    assert "'0' of model 'net'" in message and "'net' (Net)" in message
    (message,) = warned(Pairs(), {"price": SMALL, "rest": LARGE})
    assert "'rest' of model 'net'" in message


def test_a_sequential_model_without_input():
    (message,) = warned(unbuilt(), LARGE)
    assert "'reads'" in message


@pytest.mark.long
def test_whole_numbers_that_have_no_16_bits():
    (message,) = warned(sequential(), IDS)
    assert "2049" in message and "up to 2,048" in message
    (message,) = warned(sequential(), IDS.astype("int64"))
    assert "2049" in message
    (message,) = warned(sequential(), IDS % 2049 + 256, "mixed_bfloat16")
    assert "264" in message and "up to 256" in message
    assert warned(sequential(), IDS % 2049) == []
    assert warned(sequential(), IDS + 0.5) == []  # rounded, as any measurement is


@pytest.mark.parametrize(
    "policy", ["float32", keras_mp.Policy("mixed_float16", ["reads"])], ids=str
)
def test_float32_reads_all(policy):
    assert warned(sequential(), LARGE, policy) == []


def test_a_model_put_back_into_float32_reads_all():
    model = compiled(sequential())
    assert warned(model, LARGE, "float32") == []


@pytest.mark.parametrize("make", [Net, lambda inner: keras.Sequential([inner])])
def test_layers_that_read_data_are_left_in_peace(make):
    assert warned(make(layers.Embedding(80_000, 2)), IDS) == []


@pytest.mark.long
def test_a_layer_that_scales_data_is_left_in_peace():
    for scales in (layers.Normalization(mean=0.0, variance=1e12), layers.Rescaling(1)):
        scales.build(
            (None, 2)
        )  # Keras fails to build Normalization inside a model's own
        assert warned(Net(scales), LARGE) == []
        model = keras.Sequential([keras.Input((2,)), scales, layers.Dense(1)])
        assert warned(model, LARGE) == []


def test_a_nested_model_is_looked_into():
    outer = keras.Input((2,), name="outer")
    model = keras.Model(outer, sequential()(outer), name="whole")
    (message,) = warned(model, LARGE)
    assert "'outer' of model 'whole'" in message and "'reads'" in message


def test_a_subclassed_model_inside_a_functional_one():
    outer = keras.Input((2,), name="outer")
    model = keras.Model(outer, layers.Dense(1)(Net()(outer)), name="whole")
    (message,) = warned(model, LARGE)
    assert "'outer' of model 'whole'" in message and "'net' (Net)" in message


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return LARGE[2 * index :][:2], TARGET[:2]


def shuffled(numbers=LARGE):
    data = tf.data.Dataset.from_tensor_slices((numbers, TARGET))
    return data.shuffle(4, seed=1).batch(2)


def python():
    for each in LARGE:
        yield each[None], TARGET[:1]


@pytest.mark.parametrize("data", [shuffled, python, Batches], ids=lambda make: make)
def test_data_from_anywhere(data):
    (message,) = fit(compiled(sequential()), data())
    assert "'price'" in message


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=lambda options: next(iter(options)),
)
def test_steps_of_any_kind(options):
    (message,) = fit(compiled(sequential(), **options), LARGE, TARGET, batch_size=2)
    assert "'price'" in message


def test_the_order_of_shuffled_data_stays():
    seen = []

    class Sees(keras.Sequential):
        def train_step(self, data):
            tf.py_function(lambda x: seen.append(x.numpy().tolist()), [data[0]], [])
            return super().train_step(data)

    def orders(policy):
        seen.clear()
        model = Sees([keras.Input((2,)), layers.Dense(1)])
        fit(compiled(model, policy), shuffled(SMALL), epochs=3)
        return list(seen)

    assert orders("mixed_float16") == orders("float32")


def test_what_comes_late_is_seen_after_its_epoch():
    late = tf.data.Dataset.from_tensors((SMALL, TARGET)).repeat(5)
    late = late.concatenate(tf.data.Dataset.from_tensors((LARGE, TARGET)))
    model, ended = compiled(sequential()), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: ended.append(e))
    (message,) = fit(model, late, callbacks=[note], epochs=2)
    assert "'price'" in message and ended == [0, 1]


def test_the_first_step_is_judged_at_once():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                raise InterruptedError

    model = compiled(sequential())
    with pytest.warns(UserWarning, match="'price'"), pytest.raises(InterruptedError):
        model.fit(LARGE, TARGET, batch_size=1, callbacks=[Stop()], verbose=0)


def test_sparse_tensors_pass():
    data = tf.data.Dataset.from_tensors((tf.sparse.from_dense(LARGE), TARGET))
    assert fit(compiled(sequential()), data) == []


def test_what_is_infinite_anyway_is_no_matter_of_16_bits():
    holes = np.where(SMALL > 0, np.inf, 3e3).astype("float32")
    assert warned(sequential(), holes) == []
    assert warned(sequential(), np.where(SMALL > 0, np.nan, 3e3)) == []


def test_each_fit_warns_once():
    model = compiled(compiled(sequential()))
    assert len(fit(model, LARGE, TARGET, epochs=2, batch_size=2)) == 1
    assert len(fit(model, LARGE, TARGET)) == 1
    assert fit(model, SMALL, TARGET) == []


def test_callbacks_in_any_form():
    model = compiled(sequential())
    for given in [keras.callbacks.History(), (keras.callbacks.History(),)]:
        assert len(fit(model, LARGE, TARGET, callbacks=given)) == 1
    given = keras.callbacks.CallbackList([], add_history=True, model=model)
    before = list(given.callbacks)
    assert len(fit(model, LARGE, TARGET, callbacks=given)) == 1
    assert given.callbacks == before
    assert model.fit(LARGE, TARGET, 2, 3, 0, None).epoch == [0, 1, 2]  # by position


def test_a_fit_of_another_kind():
    class Own(keras.Sequential):
        def fit(self, data, verbose):
            return super().fit(data, TARGET, verbose=verbose)

    model = compiled(Own([keras.Input((2,)), *reads_and_head()]))
    assert len(fit(model, LARGE)) == 1


def test_watching_is_not_saved(tmp_path):
    model = compiled(sequential())
    fit(model, SMALL, TARGET)
    assert len(model.variables) == len(sequential().variables)
    model.save(tmp_path / "net.keras")
    with keras.saving.custom_object_scope({"mean": mean}):
        loaded = keras_mp.load_model(tmp_path / "net.keras")
    assert len(fit(loaded, LARGE, TARGET)) == 1


@pytest.mark.long
def test_every_replica_notes_its_share():
    both, second, neither = run_alone(__file__)
    assert [len(both), len(second), len(neither)] == [1, 1, 0]
    assert "holds 1e+06" in second[0]


def fits_on_two_replicas():
    with mirrored(2).scope():
        model = sequential()
    compiled(model)
    target = np.concatenate([TARGET, TARGET])
    for shares in ([LARGE, LARGE], [SMALL, LARGE], [SMALL, SMALL]):
        x = np.concatenate(shares)
        yield fit(model, x, target, batch_size=8, shuffle=False)


if __name__ == "__main__":
    print(json.dumps(list(fits_on_two_replicas())))
