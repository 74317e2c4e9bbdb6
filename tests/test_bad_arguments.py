"""Wrong arguments: a call works, or is refused by name and changes nothing."""

import pathlib

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import public_calls
from support.flights import example

import keras_mp
from keras_mp import callbacks, flight, layers, plot, scaling
from keras_mp.recording import Batch

pytestmark = pytest.mark.filterwarnings("ignore")  # of values that are odd, and taken


class Odd:
    """What no call asks for."""


def wrong_values():
    """Values of any kind that a caller may pass by mistake."""
    things = [
        None,
        True,
        False,
        "",
        "x",
        "auto",
        "mixed_float16",
        b"x",
        Odd(),
        Odd,
        len,
    ]
    shapes = [np.zeros(0), np.zeros((0, 2)), np.ones((3, 5)), np.ones(()), np.int64(3)]
    others = [np.array(["a"]), np.array([None], object), np.float64(2), 2j, slice(1)]
    configs = [{}, {"class_name": "x", "config": {}}, [], (), [None], [1], {1}]
    objects = [keras.layers.Dense, keras.layers.Dense(1), keras.optimizers.SGD()]
    objects += [keras.ops.ones((2, 2)), Odd(), Odd]
    made = st.sampled_from([*things, *shapes, *others, *configs, *objects])
    numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2, 2.5, 10**30])
    return made | numbers | st.text(max_size=8)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    model = public_calls.model()
    model.save(folder / "model.keras")
    keras_mp.save_training_state(model, folder / "state.npz")
    batch = Batch(public_calls.X, public_calls.Y, None)
    flight.write(example(seeds=[], batch=batch), folder / "flight.npz")
    diagnosis = keras_mp.diagnose(model, public_calls.X, public_calls.Y)
    return public_calls.calls(folder, diagnosis)


NAMES = list(public_calls.calls(pathlib.Path(), None))
#: Calls that take a second, of which fewer are made.
LONG = {"calibrate_scale", "diagnose", "export", "memory_report", "replay"}

SOME_OR_MANY = pytest.mark.parametrize(
    "examples", [25, pytest.param(500, marks=pytest.mark.slow)]
)


@pytest.mark.long
@pytest.mark.every(2)
@SOME_OR_MANY
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_argument(calls, name, examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a value that is a path is written
    call = calls[name]
    model = public_calls.model() if "model" in call.arguments else None
    right = call.made() | ({} if model is None else {"model": model})
    call.function(**right)
    keras.config.set_dtype_policy("float32")

    @settings(
        max_examples=examples // 5 if name in LONG else examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(call.arguments)), wrong_values())
    def run(argument, value):
        arguments = call.made() | ({} if model is None else {"model": model})
        arguments[argument] = value
        before = None if model is None else public_calls.state_of(model)
        try:
            call.function(**arguments)
        except (TypeError, ValueError) as error:
            known = (*call.words, *public_calls.UNKNOWN_NAMES)
            named = any(words in str(error) for words in known)
            assert named or argument in public_calls.KERAS_CHECKS, str(error)
        except OSError as error:  # a path at which nothing can be written
            assert argument in ("path", "file", "csv", "log_dir"), str(error)
        else:
            keras.config.set_dtype_policy("float32")
            return
        assert keras.config.dtype_policy().name == "float32"
        if model is not None:
            assert public_calls.state_of(model) == before

    run()


def test_every_public_name_is_called():
    modules = (keras_mp, callbacks, layers, plot, scaling)
    public = {
        name
        for module in modules
        for name in module.__all__
        if callable(getattr(module, name))
    }
    # What calls return, what subclasses are made of, and what has a name of its own.
    results = {"Culprit", "Diagnosis", "Finding", "LayerNumbers", "MemoryReport"}
    results |= {"Overflow", "Placement", "PlacementReport", "Saved", "Verdict"}
    bases = {"Island", "LossScale"}
    assert public - results - bases - {"policy_scope"} <= set(NAMES)


# A refused call leaves a model of any dtype as it was.


@pytest.mark.parametrize("before", ["float32", "mixed_float16", "float16"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", None])
@pytest.mark.parametrize("wrong", [{"loss": "x"}, {"metrics": 3}], ids=str)
def test_a_refused_compile(before, policy, wrong, tmp_path):
    model = public_calls.model(before)
    model.fit(public_calls.X, public_calls.Y, verbose=0)
    expected = public_calls.state_of(model)
    arguments = {"optimizer": "adam", "loss": "mse", "policy": policy, **wrong}
    with pytest.raises((TypeError, ValueError)):
        keras_mp.compile(model, **arguments)
    assert public_calls.state_of(model) == expected
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    model.fit(public_calls.X, public_calls.Y, verbose=0)


def test_a_refused_wrap_leaves_the_model_as_it_was():
    with pytest.raises(TypeError, match="wrap_optimizer.*needs a Keras model"):
        keras_mp.wrap_optimizer(None, "sgd")


@pytest.mark.parametrize("function", [keras_mp.diagnose, keras_mp.calibrate_scale])
@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (3.0, TypeError, "with a row for each sample. Got 3.0"),
        (np.ones((3, 5)), ValueError, ""),
        ("y", TypeError, "Got 'y' of type str"),
    ],
)
def test_a_batch_that_is_none(function, y, error, words):
    model = public_calls.model()
    with pytest.raises(error, match=words):
        function(model, public_calls.X, y)
