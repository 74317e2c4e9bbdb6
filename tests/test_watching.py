"""When a model in `fit` is looked at, whatever its `fit` takes, and what stays."""

import warnings

import keras
import numpy as np
import pytest

from keras_mp import watching

X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


def compiled(cls=keras.Sequential, **kwargs):
    model = cls([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **kwargs)
    return model


def looks(model, name="looks"):
    """Watch ``model``, and return a list that grows by its step count at each look."""
    seen = []

    def begin():
        def look():
            seen.append(int(model.optimizer.iterations.numpy()))
            return ()

        return look

    watching.watch(model, name, begin)
    return seen


class Narrow(keras.Sequential):
    def fit(self, data):
        return super().fit(data, Y, batch_size=4, verbose=0)


class Wide(keras.Sequential):
    def fit(self, x=None, y=None, **kwargs):
        return super().fit(x, y, **kwargs)


def endless():
    while True:
        yield X, Y


def test_looks_grow_rare():
    model = compiled()
    seen = looks(model)
    model.fit(endless(), steps_per_epoch=450, shuffle=False, verbose=0)
    assert seen == [1, 50, 100, 200, 400, 450]


def test_every_epoch_and_the_end_are_looked_at_once():
    model = compiled()
    seen = looks(model)
    model.fit(X, Y, batch_size=4, epochs=3, verbose=0, validation_data=(X, Y))
    assert seen == [1, 2, 4, 6]
    model.fit(X, Y, batch_size=8, verbose=0)
    assert seen == [1, 2, 4, 6, 7]


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}])
def test_steps_of_any_kind(options):
    model = compiled(**options)
    seen = looks(model)
    model.fit(X, Y, batch_size=2, verbose=0)
    assert seen == [1, 4]


def test_several_steps_in_one_execution():
    model = compiled(steps_per_execution=30)
    seen = looks(model)
    model.fit(endless(), steps_per_epoch=120, shuffle=False, verbose=0)
    assert seen == [30, 60, 120]


def test_a_fit_of_any_signature():
    narrow, wide = compiled(Narrow), compiled(Wide)
    seen = looks(narrow), looks(wide)
    narrow.fit(X)
    wide.fit(X, Y, batch_size=4, verbose=0)
    assert seen == ([1, 2], [1, 2])


def test_several_watchers_and_the_second_of_a_name():
    model = compiled()
    replaced, first, second = looks(model), looks(model), looks(model, "other")
    model.fit(X, Y, verbose=0)
    assert (replaced, first, second) == ([], [1], [1])


def test_whoever_resets_metrics_causes_no_look():
    class Resets(keras.Sequential):
        def train_step(self, data):
            self.reset_metrics()
            return super().train_step(data)

    model = compiled(Resets)
    seen = looks(model)
    reset = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: model.reset_metrics()
    )
    model.fit(X, Y, batch_size=2, epochs=2, verbose=0, callbacks=[reset])
    assert seen == [1, 4, 8]


def test_warnings_are_those_of_the_line_that_called_fit():
    model = compiled()
    watching.watch(model, "warns", lambda: lambda: ["look here"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y, batch_size=4, verbose=0)
    assert [str(each.message) for each in caught] == ["look here"] * 2
    assert {each.filename for each in caught} == {__file__}


def test_the_model_is_as_it_was_after_fit():
    model = compiled()
    make = model.make_train_function
    model.make_train_function = own = lambda force=False: make(force)
    looks(model)
    model.fit(X, Y, verbose=0)
    assert model.make_train_function is own
    assert not hasattr(model.train_function, "_keras_mp_uncounted")
    before = model.train_function
    model.fit(X, Y, verbose=0)
    assert model.train_function is before  # nothing is traced anew


def test_a_fit_that_fails_leaves_the_model_as_it_was():
    model = compiled()
    seen = looks(model)
    with pytest.raises(InterruptedError):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Stops()])
    assert seen == [1]
    assert not {"make_train_function", "_get_metrics_result_or_logs"} & set(vars(model))


class Stops(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            raise InterruptedError
