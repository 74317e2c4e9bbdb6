"""Files of keras_mp's where it is not imported: what Keras opens, and what it says."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import plain_keras

import keras_mp

pytestmark = pytest.mark.long

GUIDE = pathlib.Path(__file__).parents[1] / "docs/guides/saving.md"
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X[:, :1] / 100  # and a head of zeros: gradients times the scale fit float16


def trained(policy, **kwargs):
    keras.utils.set_random_seed(0)
    model = plain_keras.new_model()
    optimizer = keras.optimizers.Adam(1e-3)
    keras_mp.compile(model, optimizer, "mse", policy=policy, run_eagerly=True, **kwargs)
    for _ in range(3):
        model.train_on_batch(X, Y)
    return model


@pytest.fixture(scope="module")
def models():
    ruled = keras_mp.Policy("mixed_float16", float32=["head"])
    return {
        "scaled": trained("mixed_float16"),
        "guarded": trained("mixed_bfloat16"),
        "bare": trained("float32"),
        "unguarded": trained("mixed_bfloat16", guard=False),
        "ruled": trained(ruled),
    }


@pytest.fixture(scope="module")
def found(models, tmp_path_factory):
    """What a process without keras_mp makes of the files."""
    folder = tmp_path_factory.mktemp("files")
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    scaled = models["scaled"]
    scaled.optimizer.set_scale(64.0)
    scaled.save_weights(folder / "scaled.weights.h5")
    checkpoint = tf.train.Checkpoint(model=scaled, optimizer=scaled.optimizer)
    checkpoint.write(str(folder / "scaled.ckpt"))
    for dtype in ("float16", "bfloat16"):
        keras_mp.save_model(scaled, folder / f"{dtype}.keras", weights_dtype=dtype)
    process = subprocess.run(
        [sys.executable, plain_keras.__file__, folder],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


def loaded(outcome):
    assert "error" not in outcome, outcome
    return outcome["numbers"]


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["bare", "unguarded"])
def test_keras_opens_what_has_a_bare_optimizer_with_its_moments(models, found, name):
    assert loaded(found[name]) == plain_keras.numbers(models[name])
    assert not found[name]["warnings"]


@pytest.mark.parametrize("name", ["scaled", "guarded"])
def test_keras_opens_a_scaled_model_that_it_need_not_compile(models, found, name):
    weights, optimizer = loaded(found[f"{name}, not compiled"])
    assert weights == plain_keras.numbers(models[name])[0] and not optimizer


@pytest.mark.parametrize("name", ["scaled", "guarded"])
def test_where_keras_cannot_the_error_names_keras_mp(found, name):
    error = found[name]["error"]
    assert "Could not locate class" in error and "'keras_mp>" in error


@pytest.mark.parametrize("name", ["ruled", "ruled, not compiled"])
def test_keras_knows_no_policy_with_rules_and_says_so_in_other_words(found, name):
    """It takes the name of a class that it does not know for a policy."""
    error = found[name]["error"]
    assert error == "AttributeError: 'str' object has no attribute 'quantization_mode'"
    assert error.split(": ")[1] in GUIDE.read_text().replace("\n", " ")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keras_opens_a_file_of_half_the_size(models, found, dtype):
    weights, _ = loaded(found[dtype])
    for value, expected in zip(weights, models["scaled"].variables, strict=True):
        rounded = keras.ops.cast(keras.ops.cast(expected, dtype), "float32")
        np.testing.assert_array_equal(value, np.ravel(rounded))


def test_keras_goes_on_from_a_checkpoint_of_tensorflow(models, found):
    """With the scale, and the count of clean steps."""
    weights, optimizer = loaded(found["checkpoint"])
    model = models["scaled"]
    assert weights == plain_keras.numbers(model)[0]
    assert optimizer[:4] == [[0.0], [0.0], [3.0], [64.0]]
    inner = [
        v.numpy().ravel().tolist() for v in model.optimizer.inner_optimizer.variables
    ]
    assert optimizer[4:] == inner


def test_keras_goes_on_from_a_file_of_weights_with_a_new_scale(models, found):
    """It refuses a scale beside which there are counters that it does not know."""
    weights, optimizer = loaded(found["weights"])
    model = models["scaled"]
    assert weights == plain_keras.numbers(model)[0]
    assert optimizer[3] == [2.0**15]
    inner = [
        v.numpy().ravel().tolist() for v in model.optimizer.inner_optimizer.variables
    ]
    assert optimizer[4:] == inner
    (said,) = found["weights"]["warnings"]
    assert said.startswith("Skipping variable loading for optimizer 'loss_scale")
