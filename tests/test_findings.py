"""What is broken in Keras today fails with Keras's own class and passes with ours.

The numbers are those of the project's list of findings. A test of Keras's own class
that starts to pass is reported as a failure, so that the list stays true.
"""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp.callbacks import ScalerStats

BROKEN = pytest.mark.xfail(strict=True, raises=(AssertionError, AttributeError))
BOTH = pytest.mark.parametrize(
    "own",
    [pytest.param(False, marks=BROKEN, id="keras"), pytest.param(True, id="ours")],
)

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def wrap(own, inner, **kwargs):
    cls = keras_mp.LossScaleOptimizer if own else keras.optimizers.LossScaleOptimizer
    return cls(inner, **kwargs)


def compile_model(own, model, optimizer="sgd", loss="mse", **kwargs):
    if own:
        keras_mp.compile(model, optimizer, loss=loss, **kwargs)
    else:
        model.compile(optimizer, loss=loss, **kwargs)


def policy(own, name, rules):
    """Return a policy with float32 rules, in the way Keras or ours has them."""
    if own:
        return keras_mp.Policy(name, float32=rules)
    float32 = keras.DTypePolicy("float32")
    return keras.dtype_policies.DTypePolicyMap(
        default_policy=keras.DTypePolicy(name),
        policy_map={rule: float32 for rule in rules},
    )


@BOTH
@pytest.mark.filterwarnings("ignore:LossScaleOptimizer")
def test_3_scale_stays_above_zero_after_200_overflows(own):
    weight = keras.Variable([1.0])
    optimizer = wrap(own, keras.optimizers.SGD(0.1))
    for _ in range(200):
        optimizer.apply([keras.ops.array([np.inf])], [weight])
    optimizer.apply([keras.ops.array([1.0])], [weight])
    assert np.isfinite(weight.numpy()).all()


@BOTH
@pytest.mark.filterwarnings("ignore:LossScaleOptimizer")
def test_3_scale_stays_finite_after_200_growths(own):
    weight = keras.Variable([1.0])
    optimizer = wrap(own, keras.optimizers.SGD(0.1), dynamic_growth_steps=1)
    for _ in range(200):
        optimizer.apply([keras.ops.array([0.0])], [weight])
    assert np.isfinite(float(optimizer.scale_loss(1.0)))


@BOTH
def test_4_skipped_step_leaves_batch_norm_and_epoch_loss_finite(own):
    with keras_mp.policy_scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(4),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(1, dtype="float32"),
            ]
        )
    compile_model(own, model)
    poisoned = X.copy()
    poisoned[8] = 1e30  # beyond float16: the second batch of four overflows
    history = model.fit(poisoned, Y, batch_size=8, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(v.numpy()).all() for v in model.non_trainable_variables)


@BOTH
@pytest.mark.parametrize("way", ["layer", "map"])
def test_6_float16_layers_train_scaled_whatever_the_policy_is_called(own, way):
    if way == "map":
        keras.config.set_dtype_policy(policy(False, "mixed_float16", ["head"]))
    dtype = "mixed_float16" if way == "layer" else None
    dense = [keras.layers.Dense(1, dtype=dtype) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *dense])
    compile_model(own, model)
    assert model.layers[0].compute_dtype == "float16"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


@keras.saving.register_keras_serializable("test_findings")
class KerasSubclass(keras.DTypePolicy):
    """What a user would write first: a policy with a setting of its own."""

    def __init__(self, name, float32=()):
        super().__init__(name)
        self.rules = tuple(float32)

    def get_config(self):
        return {"name": self.name, "float32": list(self.rules)}


@BOTH
def test_7_policy_subclass_survives_save_and_load(own, tmp_path):
    cls = keras_mp.Policy if own else KerasSubclass
    layer = keras.layers.Dense(1, dtype=cls("mixed_float16", ["head"]))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0].dtype_policy) is cls
    assert loaded.layers[0].dtype_policy.rules == ("head",)


def trained(own, policy):
    """Return a model under ``policy`` after one step of Adam."""
    with keras_mp.policy_scope(policy):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    compile_model(own, model, "adam", run_eagerly=True)
    model.train_on_batch(X, Y)
    return model


def state(optimizer):
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return [variable.numpy().tolist() for variable in optimizer.variables]


@BOTH
@pytest.mark.filterwarnings("ignore:Skipping variable loading")
def test_8_moments_survive_while_mixed_float16_is_global(own, tmp_path):
    model = trained(own, "float32")
    model.save(tmp_path / "model.keras")
    with keras_mp.policy_scope("mixed_float16"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert state(loaded.optimizer) == state(model.optimizer)


@BOTH
@pytest.mark.filterwarnings("ignore:Skipping variable loading")
def test_8_scaler_survives_while_float32_is_global(own, tmp_path):
    model = trained(False, "mixed_float16")
    model.save(tmp_path / "model.keras")
    load = keras_mp.load_model if own else keras.saving.load_model
    loaded = load(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    assert state(loaded.optimizer) == state(model.optimizer)


@BOTH
@pytest.mark.parametrize("rule", ["sequential/out", "functional/out"])
def test_9_rule_with_a_model_name_holds_before_and_after_loading(own, rule, tmp_path):
    model_name = rule.split("/")[0]
    with keras_mp.policy_scope(policy(own, "mixed_float16", [rule])):
        if model_name == "sequential":
            model = keras.Sequential(name=model_name)
            model.add(keras.Input((4,)))
            model.add(keras.layers.Dense(1, name="out"))
        else:
            inputs = keras.Input((4,))
            outputs = keras.layers.Dense(1, name="out")(inputs)
            model = keras.Model(inputs, outputs, name=model_name)
    compile_model(own, model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert model.get_layer("out").compute_dtype == "float32"
    assert loaded.get_layer("out").compute_dtype == "float32"


@BOTH
def test_map_reaches_layers_without_weights(own):
    with keras_mp.policy_scope(policy(own, "mixed_float16", ["weightless"])):
        layer = keras.layers.Softmax(name="weightless")
        model = keras.Sequential([keras.Input((4,)), layer])
    assert model.layers[0].compute_dtype == "float32"


@BOTH
def test_20_wrapper_lets_its_inner_optimizer_through(own):
    inner = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer = wrap(own, inner)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert inner._exclude_from_weight_decay_pattern.pattern == "bias"
    assert optimizer.beta_1 == inner.beta_1
    assert optimizer.weight_decay == 0.1


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(
            False,
            marks=pytest.mark.xfail(strict=True, raises=pytest.fail.Exception),
            id="keras",
        ),
        pytest.param(True, id="ours"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        {"initial_scale": 0.0},
        {"initial_scale": -1.0},
        {"initial_scale": np.nan},
        {"initial_scale": np.inf},
        {"dynamic_growth_steps": 0},
    ],
    ids=str,
)
def test_21_impossible_scaling_is_refused(own, arguments):
    with pytest.raises((ValueError, TypeError)):
        wrap(own, keras.optimizers.SGD(), **arguments)


@BOTH
def test_21_from_config_leaves_its_dict_alone(own):
    optimizer = wrap(own, keras.optimizers.SGD())
    config = optimizer.get_config()
    before = set(config)
    type(optimizer).from_config(config)
    assert set(config) == before


@BOTH
def test_24_old_names_for_custom_loops_work(own):
    optimizer = wrap(own, keras.optimizers.SGD(1.0), initial_scale=8.0)
    weight = keras.Variable([1.0])
    assert float(optimizer.get_scaled_loss(1.0)) == 8.0
    gradients = optimizer.get_unscaled_gradients([keras.ops.array([8.0])])
    optimizer.apply_gradients(zip(gradients, [weight], strict=True))
    assert weight.numpy() == [0.0]


def test_that_ours_counts_what_it_skipped():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    keras_mp.compile(model, "sgd", loss="mse", policy="mixed_float16")
    poisoned = X.copy()
    poisoned[0] = np.inf
    logs = model.fit(
        poisoned, Y, batch_size=8, verbose=0, shuffle=False, callbacks=[ScalerStats()]
    ).history
    assert logs["scaler_skipped"] == [1]
    assert logs["scaler_applied"] == [3]
