"""`save_model`: half the size, the same model, and errors that are as reported."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.stateful import METRICS, X, Y, stateful_model

import keras_mp
from keras_mp import model_saving

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
#: Half a unit in the last place: 11 bits and 8.
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
LOADERS = [keras_mp.load_model, keras.saving.load_model]


def wide(policy="float32", units=256):
    """Return a model of which the weights are most of the file."""
    with keras_mp.policy_scope(policy):
        inputs = keras.Input((units,))
        x = keras.layers.Dense(units, activation="relu", name="body")(inputs)
        x = keras.layers.BatchNormalization(name="norm")(x)
        return keras.Model(inputs, keras.layers.Dense(units, name="head")(x))


ROWS = np.random.default_rng(0).normal(size=(4, 256)).astype("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("weights_dtype", ROUNDING)
@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_rounded_once_and_nothing_else(policy, weights_dtype, load, folder):
    model = wide(policy)
    full = keras_mp.save_model(model, folder / "full.keras")
    path = folder / "half.keras"
    half = keras_mp.save_model(model, path, weights_dtype=weights_dtype, sample=ROWS)
    assert half.path == path and half.size == path.stat().st_size
    assert half.size < 0.52 * full.size  # a few thousand bytes are names
    loaded = load(path)
    shares = {}
    for new, old in zip(loaded.variables, model.variables, strict=True):
        dtype = model_saving._ROUNDED_TO[weights_dtype]
        rounded = old.numpy().astype(dtype).astype("float32")
        assert new.dtype == old.dtype == "float32"
        np.testing.assert_array_equal(new.numpy(), rounded)
        largest = np.abs(old.numpy()).max()
        shares[old.path] = np.abs(rounded - old.numpy()).max() / (largest or 1.0)
    assert half.variable == max(shares, key=shares.get)
    np.testing.assert_allclose(half.error, shares[half.variable])
    assert 0 < half.error <= ROUNDING[weights_dtype]
    for new, old in zip(loaded.layers[1:], model.layers[1:], strict=True):
        assert new.dtype_policy == old.dtype_policy
    assert not loaded.compiled


@pytest.mark.parametrize("weights_dtype", ROUNDING)
def test_a_layer_that_computes_in_the_dtype_predicts_the_same(weights_dtype, tmp_path):
    with keras_mp.policy_scope(f"mixed_{weights_dtype}"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    saved = keras_mp.save_model(
        model, tmp_path / "m.keras", weights_dtype=weights_dtype, sample=X
    )
    assert saved.error > 0 and saved.difference == 0


def test_predictions_are_compared_on_a_sample(tmp_path):
    model = wide()
    path = tmp_path / "m.keras"
    saved = keras_mp.save_model(model, path, weights_dtype="bfloat16", sample=ROWS)
    expected = model.predict(ROWS, verbose=0)
    got = keras.saving.load_model(path).predict(ROWS, verbose=0)
    moved = np.abs(got - expected).max() / np.abs(expected).max()
    assert 0 < saved.difference == pytest.approx(moved)
    assert f"{saved.difference:.1e}" in str(saved)


def test_without_a_dtype_it_is_model_save(tmp_path):
    model = wide("mixed_float16", units=8)
    keras_mp.compile(model, "adam", "mse", run_eagerly=True)
    model.train_on_batch(ROWS[:, :8], ROWS[:, :8])
    saved = keras_mp.save_model(model, tmp_path / "m.keras")
    assert saved == (tmp_path / "m.keras", saved.size, None, 0.0, None, 0, None)
    assert str(saved) == f"{tmp_path}/m.keras: {saved.size:,} bytes"
    loaded = keras_mp.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.stats() == model.optimizer.stats()
    for a, b in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("weights_dtype", ROUNDING)
def test_the_model_stays_as_it_is_and_trains_on(weights_dtype, tmp_path):
    model = stateful_model()
    keras_mp.compile(
        model, "adam", "mse", metrics=METRICS, policy="mixed_float16", run_eagerly=True
    )
    model.train_on_batch(X, Y)
    attributes = [set(vars(each)) for each in (model, model.optimizer, *model.layers)]
    values = [v.numpy() for v in model.variables + model.optimizer.variables]
    saved = keras_mp.save_model(
        model, tmp_path / "m.keras", weights_dtype=weights_dtype
    )
    after = [v.numpy() for v in model.variables + model.optimizer.variables]
    for a, b in zip(values, after, strict=True):
        np.testing.assert_array_equal(a, b)
    new = [set(vars(each)) for each in (model, model.optimizer, *model.layers)]
    assert attributes == new
    model.train_on_batch(X, Y)
    model.save(tmp_path / "full.keras")
    again = keras_mp.load_model(tmp_path / "full.keras")
    assert again.optimizer.stats() == model.optimizer.stats()
    assert saved.size < (tmp_path / "full.keras").stat().st_size
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert b"Adam" not in archive.read("config.json")


@keras.saving.register_keras_serializable("test_model_saving")
class Net(keras.Model):
    """Has an optimizer, a model and a counter of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own_optimizer = keras.optimizers.SGD(1e-9)  # 0 in float16
        self.inner = keras.Sequential([keras.layers.Dense(4)])
        self.steps = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", name="steps", trainable=False
        )

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize("load", LOADERS)
def test_what_is_no_weight_is_not_rounded(load, tmp_path):
    model = Net()
    model(X)
    model.compile("adam", "mse")
    model.steps.assign(2**20 + 1)
    keras_mp.save_model(model, tmp_path / "m.keras", weights_dtype="float16")
    loaded = load(tmp_path / "m.keras")
    assert int(loaded.steps) == 2**20 + 1
    assert float(loaded.own_optimizer.learning_rate) == np.float32(1e-9)
    got, expected = (each.inner.layers[0].kernel.numpy() for each in (loaded, model))
    np.testing.assert_array_equal(got, expected.astype("float16").astype("float32"))


def test_a_weight_beyond_the_range_is_refused_by_name(tmp_path):
    model = wide(units=8)
    model.get_layer("norm").moving_variance.assign(np.full(8, 70000.0, "float32"))
    path = tmp_path / "m.keras"
    path.write_text("as it was")
    with pytest.raises(ValueError, match="'norm/moving_variance' holds 7e\\+04"):
        keras_mp.save_model(model, path, weights_dtype="float16")
    assert path.read_text() == "as it was" and len(list(tmp_path.iterdir())) == 1
    assert keras_mp.save_model(model, path, weights_dtype="bfloat16").error > 0


def test_weights_that_are_not_finite_stay_so_and_zeros_are_counted(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="d")])
    values = np.array([[np.inf], [np.nan], [1e-9], [0.0]], "float32")
    model.layers[0].kernel.assign(values)
    path = tmp_path / "m.keras"
    saved = keras_mp.save_model(model, path, weights_dtype="float16")
    assert (saved.error, saved.zeroed) == (1.0, 1)
    assert "not 0, 1 became 0" in str(saved)
    loaded = keras.saving.load_model(path).layers[0].kernel.numpy()
    np.testing.assert_array_equal(loaded, [[np.inf], [np.nan], [0.0], [0.0]])


def test_weights_in_16_bits_stay_as_they_are(tmp_path):
    with keras_mp.policy_scope("bfloat16"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    path = tmp_path / "m.keras"
    saved = keras_mp.save_model(model, path, weights_dtype="float16")
    assert saved.error == 0 and "No weight was rounded" in str(saved)
    loaded = keras.saving.load_model(path)
    for a, b in zip(loaded.variables, model.variables, strict=True):
        assert a.dtype == b.dtype == "bfloat16"
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_a_quantized_model_stays_quantized(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.quantize("int8")
    path = tmp_path / "m.keras"
    keras_mp.save_model(model, path, weights_dtype="float16", sample=X)
    loaded = keras.saving.load_model(path)
    assert loaded.layers[0].quantization_mode == "int8"
    np.testing.assert_array_equal(loaded.layers[0]._kernel, model.layers[0]._kernel)


def test_layers_with_a_state_of_their_own(tmp_path):
    """They read it in ways of their own, too."""
    data = np.array(["a", "b", "a"])
    text = keras.layers.TextVectorization(output_sequence_length=1)
    text.adapt(data)
    normalization = keras.layers.Normalization()
    normalization.adapt(np.array([[1.0], [2.0], [4.0]]))
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, normalization(text(inputs)))
    path = tmp_path / "m.keras"
    sample = tf.constant(data[:, None])
    saved = keras_mp.save_model(model, path, weights_dtype="float16", sample=sample)
    loaded = keras.saving.load_model(path)
    assert loaded.layers[1].get_vocabulary() == text.get_vocabulary()
    # Two roundings, of the mean and of the variance.
    assert 0 < saved.difference < 2**-9


def test_what_cannot_be_done_is_refused(tmp_path):
    model = wide(units=2)
    with pytest.raises(ValueError, match="weights_dtype='float8'.*must be None"):
        keras_mp.save_model(model, tmp_path / "m.keras", weights_dtype="float8")
    with pytest.raises(ValueError, match=r"a path that ends in '\.keras'"):
        keras_mp.save_model(model, tmp_path / "m.h5", weights_dtype="float16")
    with pytest.raises(TypeError, match="needs a Keras model. Got <Dense"):
        keras_mp.save_model(keras.layers.Dense(1), tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())
