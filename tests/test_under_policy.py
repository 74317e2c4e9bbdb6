"""`load_model` under the saved policy, whatever is global, and under another one."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import scaling

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X[:, :1] / 100  # and a head of zeros: gradients times the scale fit float16


@keras.saving.register_keras_serializable("test_under_policy")
class Subclassed(keras.Model):
    """Its layers are not in the file."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(4)
        self.norm = keras.layers.BatchNormalization()
        self.out = keras.layers.Dense(1, kernel_initializer="zeros")

    def call(self, x, training=None):
        return self.out(self.norm(self.hidden(x), training=training))


@keras.saving.register_keras_serializable("test_under_policy")
class Untold(Subclassed):
    """Its config has no dtype."""

    def get_config(self):
        return {"name": self.name}


def functional():
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    head = keras.layers.Dense(1, kernel_initializer="zeros")
    return keras.Model(inputs, head(x))


def sequential():
    layers = [
        keras.layers.Dense(4),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1, kernel_initializer="zeros"),
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def trained(make, policy, **kwargs):
    """Return a model that is three steps from new, of which one overflowed."""
    keras.utils.set_random_seed(0)
    with keras_mp.policy_scope(policy):
        model = make()
        kwargs = {"run_eagerly": True, **kwargs}  # spares the seconds of a trace
        keras_mp.compile(model, keras.optimizers.Adam(1e-3), "mse", **kwargs)
    poison = 1e30 if policy == "mixed_float16" else 1.0
    for factor in (1.0, 1.0, poison):
        model.train_on_batch(X * np.float32(factor), Y)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models of each kind under each policy, each with its file."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for make in (functional, sequential, Subclassed):
        for policy in POLICIES:
            model = trained(make, policy)
            path = folder / f"{make.__name__}-{policy}.keras"
            model.save(path)
            made[make, policy] = model, path
    return made


def bare(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def assert_same_values(variables, others):
    """Equal to the bit: a file holds what it was given."""
    for a, b in zip(variables, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def places(model):
    return [(type(x), x.dtype_policy.name) for x in model._flatten_layers()]


@pytest.mark.long
@pytest.mark.parametrize("around", POLICIES)
@pytest.mark.parametrize("saved", POLICIES)
@pytest.mark.parametrize("make", [functional, sequential, Subclassed])
def test_whatever_is_global_the_model_is_as_it_was_saved(files, make, saved, around):
    model, path = files[make, saved]
    with keras_mp.policy_scope(around):
        loaded = keras_mp.load_model(path)
    assert places(loaded) == places(model)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert_same_values(loaded.variables, model.variables)
    assert_same_values(loaded.optimizer.variables, model.optimizer.variables)
    if saved != "float32":
        assert loaded.optimizer.scaling == model.optimizer.scaling
        assert loaded.optimizer.stats() == model.optimizer.stats()


@pytest.mark.long
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("saved", POLICIES)
@pytest.mark.parametrize("make", [functional, sequential])
def test_keras_keeps_the_moments_whatever_is_global(
    files, make, saved, again, tmp_path
):
    """Finding 8: its own `load_model` lost them while mixed_float16 was global."""
    model, path = files[make, saved]
    if again:
        model = keras_mp.load_model(path)
        path = tmp_path / "again.keras"
        model.save(path)
    with keras_mp.policy_scope("mixed_float16"):
        loaded = keras.saving.load_model(path)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert_same_values(loaded.optimizer.variables, model.optimizer.variables)


def test_keras_still_scales_what_the_global_policy_makes_float16(files):
    """The layers of a class of the user's own are made under it: they need a scale."""
    config = files[Subclassed, "float32"][0].get_compile_config()
    assert "auto_scale_loss" not in config


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("saved", POLICIES)
@pytest.mark.parametrize("make", [functional, Subclassed])
def test_a_model_is_loaded_under_another_policy(files, make, saved, policy):
    model, path = files[make, saved]
    loaded = keras_mp.load_model(path, policy=policy)
    with keras_mp.policy_scope(saved):
        expected = make()
        expected(X)
    keras_mp.compile(expected, "adam", "mse", policy=policy)
    assert places(loaded) == places(expected)
    assert type(loaded.optimizer) is type(expected.optimizer)
    assert_same_values(loaded.variables, model.variables)
    assert_same_values(
        bare(loaded.optimizer).variables, bare(model.optimizer).variables
    )
    scaled = isinstance(loaded.optimizer, keras_mp.LossScaleOptimizer)
    if scaled:
        assert loaded.optimizer.scaling == expected.optimizer.scaling
    if scaled and saved != "float32":
        counted = {"scale": loaded.optimizer.stats()["scale"]}
        assert loaded.optimizer.stats() == model.optimizer.stats() | counted
    loaded.train_on_batch(X, Y)
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) + 1


def test_a_scale_stays_from_float16_to_float16(files):
    model, path = files[functional, "mixed_float16"]
    scale = model.optimizer.stats()["scale"]
    assert scale != model.optimizer.initial_scale
    ruled = keras_mp.Policy("mixed_float16", float32=[keras.layers.BatchNormalization])
    loaded = keras_mp.load_model(path, policy=ruled)
    assert loaded.optimizer.stats() == model.optimizer.stats()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("saved", POLICIES)
def test_a_file_that_does_not_tell_its_policy(saved, policy, tmp_path):
    model = trained(Untold, saved)
    model.save(tmp_path / "model.keras")
    with keras_mp.policy_scope("mixed_float16"):
        loaded = keras_mp.load_model(tmp_path / "model.keras", policy=policy)
    assert loaded.hidden.dtype_policy.name == policy
    assert_same_values(
        bare(loaded.optimizer).variables, bare(model.optimizer).variables
    )


@pytest.mark.parametrize(
    ("policy", "scale"), [("mixed_bfloat16", 1.0), ("mixed_float16", 2.0**15)]
)
def test_a_scale_starts_anew_where_there_was_none(policy, scale, files):
    """From bfloat16, and from float16 to bfloat16, whose scale is 1."""
    _, path = files[functional, "mixed_bfloat16"]
    loaded = keras_mp.load_model(path, policy=policy)
    assert loaded.optimizer.stats()["scale"] == scale


def test_what_else_the_optimizer_was_told_stays(tmp_path):
    spikes = keras_mp.SpikeRule(deviations=9.0)
    model = trained(functional, "mixed_float16", skip_spikes=spikes)
    model.save(tmp_path / "model.keras")
    for policy in ("mixed_bfloat16", "float32"):
        loaded = keras_mp.load_model(tmp_path / "model.keras", policy=policy)
        assert loaded.optimizer.scaling == scaling.StaticLossScale(1.0)
        assert loaded.optimizer.skip_spikes == spikes
        assert loaded.optimizer.stats() == model.optimizer.stats() | {"scale": 1.0}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_scaler_of_keras_goes_on_under_another_policy(policy, tmp_path):
    with keras_mp.policy_scope("mixed_float16"):
        model = functional()
        model.compile(keras.optimizers.Adam(1e-3), "mse", run_eagerly=True)
    model.train_on_batch(X, Y)
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(tmp_path / "model.keras", policy=policy)
    wrapped = isinstance(loaded.optimizer, keras_mp.LossScaleOptimizer)
    assert wrapped == (policy != "float32")
    assert_same_values(
        bare(loaded.optimizer).variables, model.optimizer.inner_optimizer.variables
    )
    loaded.train_on_batch(X, Y)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("saved", ["float16", "bfloat16"])
def test_pure_16_bits_become_a_mixed_policy(saved, compiled, tmp_path):
    """Its moments were in 16 bits, and become those of float32 weights."""
    model = trained(functional, saved)
    model.save(tmp_path / "model.keras")
    loaded = keras_mp.load_model(
        tmp_path / "model.keras", policy="mixed_float16", compile=compiled
    )
    assert {v.dtype for v in loaded.trainable_variables} == {"float32"}
    if not compiled:
        assert not loaded.compiled
        return
    pairs = zip(
        bare(loaded.optimizer).variables, bare(model.optimizer).variables, strict=True
    )
    for new, old in pairs:
        assert new.dtype in ("float32", "int32", "int64")
        np.testing.assert_array_equal(new.numpy(), old.numpy().astype(new.dtype))
    loaded.train_on_batch(X, Y)


def test_wider_weights_are_not_rounded(tmp_path):
    functional().save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="would be rounded"):
        keras_mp.load_model(tmp_path / "model.keras", policy="float16")


def test_an_unknown_policy_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="'mixed_float17' is no dtype policy"):
        keras_mp.load_model(tmp_path / "absent.keras", policy="mixed_float17")


def test_auto_picks_by_hardware(files):
    _, path = files[functional, "mixed_float16"]
    loaded = keras_mp.load_model(path, policy="auto")
    name, _ = keras_mp.hardware.recommend()
    assert loaded.layers[1].dtype_policy.name == name
