"""`keras_mp.lint` and ``keras-mp lint``: what each check finds, and what not."""

import functools
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_mp
from keras_mp import cli, precision_lists
from keras_mp.guards import GUARDS

X = np.ones((8, 8), "float32")


def model_of(*inner, shape=(8,), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *inner], name="net")


def dense(units=8, activation=None, dtype="mixed_float16", **kwargs):
    return layers.Dense(units, activation, dtype=dtype, name="head", **kwargs)


def found(model, rule, batch_size=None):
    """Return what one check finds in ``model``."""
    return [f for f in keras_mp.lint(model, batch_size) if f.rule == rule]


def lines(findings):
    return [(f.severity, f.layer) for f in findings]


# Loss scaling.


def test_float16_without_loss_scaling():
    model = model_of(dense())
    model.compile("adam", "mse")  # Keras goes by the policy of the model: float32
    (finding,) = found(model, "loss-scaling")
    assert (finding.severity, finding.layer) == ("error", "net/head")
    assert "optimizer 'adam' scales no loss" in finding.reason
    keras_mp.compile(model, "adam", "mse")
    assert not keras_mp.lint(model)


def test_loss_scaling_of_keras_and_a_fixed_scale_count():
    model = model_of(dense())
    for optimizer in (
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        keras.optimizers.SGD(loss_scale_factor=1024.0),
    ):
        model.compile(optimizer, "mse")
        assert not found(model, "loss-scaling")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_other_dtypes_need_no_loss_scaling(policy):
    model = model_of(dense(dtype=policy))
    assert not found(model, "unknown")
    model.compile("adam", "mse")
    assert not found(model, "loss-scaling")


def test_a_model_that_is_not_compiled_is_a_note():
    (finding,) = found(model_of(dense(), layers.Dense(8)), "unknown")
    assert finding.severity == "note" and "not compiled" in finding.reason


class Gan(keras.Model):
    def __init__(self):
        super().__init__(name="gan")
        self.generator = model_of(dense())

    def compile(self, one, other):
        super().compile()
        self.one, self.other = one, other


def test_every_optimizer_of_a_model_is_checked():
    gan = Gan()
    gan.compile(keras.optimizers.Adam(), keras_mp.wrap_optimizer(gan, "sgd"))
    (finding,) = found(gan, "loss-scaling")
    assert "'adam'" in finding.reason and finding.layer == "gan/net/head"


def test_double_scaling():
    inner = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=4.0
    )
    twice = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    head = layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = model_of(head, shape=(1,))
    model.compile(twice, "mae")
    assert lines(found(model, "double-scaling")) == [("error", "net")]
    model.fit(X[:, :1], X[:, :1], batch_size=8, verbose=0)
    assert head.kernel.numpy() == 0.25  # as the reason says; it should be 1
    keras_mp.compile(model, keras_mp.LossScaleOptimizer("sgd"), "mse")
    assert not found(model, "double-scaling")


# Sensitive layers.


SENSITIVE = {
    "activation": lambda: dense(8, "softmax"),
    "regularizer": lambda: dense(activity_regularizer="l2"),
    "denied": lambda: layers.Softmax(dtype="mixed_float16", name="head"),
    "inside": lambda: layers.ELU(dtype="mixed_float16", name="head"),
}


@pytest.mark.parametrize("make", SENSITIVE.values(), ids=SENSITIVE)
def test_sensitive_layers(make):
    model = model_of(make(), layers.Dense(8))
    assert lines(found(model, "sensitive")) == [("warning", "net/head")]
    keras_mp.compile(model, "adam", "mse")
    assert not keras_mp.lint(model)


def test_a_layer_in_an_island_is_not_sensitive():
    island = keras_mp.layers.Float32(dense(8, "softmax"), dtype="mixed_float16")
    assert not found(model_of(island), "sensitive")


def test_layers_that_are_built_after_compile():
    model = keras.Sequential([dense(8, "softmax"), layers.ELU(dtype="mixed_float16")])
    keras_mp.compile(model, "adam", "mse")
    model.fit(X, X, verbose=0)
    assert not keras_mp.lint(model)


def test_what_a_rule_allows_is_not_sensitive():
    policy = keras_mp.Policy("mixed_float16", allow=["head"])
    assert not found(model_of(dense(8, "softmax", policy)), "sensitive")


def test_attention_is_one_finding():
    inputs = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 8, dtype="mixed_float16", name="mha")
    model = keras.Model(inputs, attention(inputs, inputs), name="net")
    (finding,) = found(model, "sensitive")
    assert finding.layer == "net/mha" and "softmax" in finding.reason
    keras_mp.compile(model, "adam", "mse")
    assert not keras_mp.lint(model)


@pytest.mark.parametrize("dtype, expected", [("float32", ["net"]), ("int32", [])])
def test_containers_that_round_ids(dtype, expected):
    with_policy = {"dtype": "mixed_float16"}
    embedding = layers.Embedding(10, 8, **with_policy)
    inputs = keras.Input((8,), dtype=dtype)
    model = keras.Model(inputs, embedding(inputs), name="net", **with_policy)
    model.dtype_policy = "mixed_float16"
    assert [f.layer for f in found(model, "sensitive")] == expected
    if expected:
        keras_mp.convert(model, "mixed_float16")
        assert not found(model, "sensitive")


def test_a_shared_layer_is_named_once():
    shared = dense(8, "softmax")
    inputs = keras.Input((8,))
    inner = keras.Sequential([keras.Input((8,)), shared], name="inner")
    model = keras.Model(inputs, inner(shared(inputs)), name="net")
    assert len(found(model, "sensitive")) == 1


def test_asking_for_missing_guards_puts_none_on():
    for make in (*SENSITIVE.values(), lambda: layers.MultiHeadAttention(2, 8)):
        layer = make()
        before = dict(vars(layer))
        for guard in GUARDS.values():
            if guard.is_needed(layer):
                guard.is_on(layer)
        assert vars(layer) == before


# What the model returns.


def test_low_precision_heads_by_name():
    inputs = keras.Input((8,))
    outputs = [
        layers.Dense(8, dtype=dtype, name=name)(inputs)
        for name, dtype in (("a", "mixed_bfloat16"), ("b", "float32"), ("c", "float16"))
    ]
    model = keras.Model(inputs, outputs, name="net")
    heads = found(model, "head")
    assert lines(heads) == [("warning", "net/a"), ("warning", "net/c")]
    assert "bfloat16" in heads[0].reason


def test_heads_are_judged_by_the_dtypes_of_today():
    model = model_of(dense(dtype="float32"))
    model.layers[-1].dtype_policy = "mixed_float16"
    assert lines(found(model, "head")) == [("warning", "net/head")]


class Own(keras.Model):
    """Takes inputs in a dict, and computes its loss by a function."""

    def __init__(self):
        super().__init__(name="own", dtype="mixed_float16")
        self.head = dense()

    def call(self, inputs):
        return self.head(inputs["one"]) + self.head(inputs["other"])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_):
        return ops.mean(keras.losses.mean_squared_error(y, y_pred))


def own():
    model = Own()
    model({"one": X, "other": X})
    return model


def test_a_model_of_ones_own():
    model = own()
    assert lines(found(model, "head")) == [("warning", "own")]
    assert not [f for f in keras_mp.lint(model) if "traced" in f.reason]


def test_a_model_that_cannot_be_traced_is_a_note():
    model = own()
    model.call = None
    (finding,) = [f for f in found(model, "unknown") if "traced" in f.reason]
    assert finding.severity == "note" and finding.layer == "own"


# Losses.


def seen_by(loss):
    """Return a function, and the dtypes of the predictions that it was given."""
    seen = []

    def function(y_true, y_pred):
        seen.append(keras.backend.standardize_dtype(y_pred.dtype))
        return loss(y_true, y_pred)

    return function, seen


def test_functions_given_to_compile_get_float32_from_keras():
    function, seen = seen_by(keras.losses.mean_squared_error)
    model = model_of(dense())
    model.compile("sgd", function)
    model.fit(X, X, verbose=0)
    assert set(seen) == {"float32"}
    assert not found(model, "functional-loss")


def test_a_loss_in_16_bits():
    model = model_of(dense())
    model.compile("sgd", keras.losses.MeanSquaredError(dtype="float16"))
    (finding,) = found(model, "functional-loss")
    assert "mean_squared_error" in finding.reason and "float16" in finding.reason


def test_a_function_that_the_model_calls_by_itself():
    x = ops.full((1, 8), 300.0, dtype="float16")
    assert np.isinf(keras.losses.mean_squared_error(0 * x, x)).all()  # 90,000
    model = own()
    (finding,) = found(model, "functional-loss")
    assert "compute_loss calls mean_squared_error" in finding.reason
    keras_mp.compile(model, "adam")
    assert not found(model, "functional-loss")


def test_what_names_no_function_of_keras():
    class Decorated(Own):
        compute_loss = tf.function(Own.compute_loss)
        train_step = functools.partialmethod(Own.train_step)

        def test_step(self, data):
            huber = keras.losses.Huber()  # a class casts
            return {"huber": huber(data[1], self(data[0]))}

    model = Decorated()
    model({"one": X, "other": X})
    names = [f.reason.split(",")[0] for f in found(model, "functional-loss")]
    assert names == ["its compute_loss calls mean_squared_error"]


# Rules.


def test_rules_that_match_nothing():
    policy = keras_mp.Policy("mixed_float16", float32=["haed"], follow=["nothing"])
    with_rules = found(model_of(dense(dtype=policy)), "rule")
    assert lines(with_rules) == [("warning", "net")] * 2
    assert "'haed'" in with_rules[0].reason and "'head'" in with_rules[0].fix
    policy = keras_mp.Policy("mixed_float16", float32=["last"], allow=["head"])
    last = layers.Dense(8, dtype=policy, name="last")
    assert not found(model_of(dense(dtype=policy), last), "rule")


# Alignment.

LOW = {"dtype": "mixed_float16"}
# Layer, input shape, sizes in the reason, times as many multiplications.
ALIGNMENT = {
    "Dense": (
        lambda: layers.Dense(100, **LOW),
        (8,),
        "units 100",
        104 / 100,
    ),
    "both": (
        lambda: layers.Dense(10, **LOW),
        (9,),
        "input features 9, units 10",
        16 * 16 / 90,
    ),
    "EinsumDense": (
        lambda: layers.EinsumDense("xya,abc->xybc", (None, 3, 5), **LOW),
        (4, 8),
        "output features 15",
        16 / 15,
    ),
    "Conv2D": (
        lambda: layers.Conv2D(16, 3, **LOW),
        (8, 8, 3),
        "input channels 3",
        8 / 3,
    ),
    "groups": (
        lambda: layers.Conv2D(16, 3, groups=2, **LOW),
        (8, 8, 4),
        "input channels of a group 2",
        8 / 2,
    ),
    "transposed": (
        lambda: layers.Conv2DTranspose(12, 3, **LOW),
        (8, 8, 16),
        "filters 12",
        16 / 12,
    ),
    "separable": (
        lambda: layers.SeparableConv2D(12, 3, **LOW),
        (8, 8, 8),
        "filters 12",
        16 / 12,
    ),
    "LSTM": (
        lambda: layers.LSTM(12, **LOW),
        (4, 8),
        "units 12",
        16 * (8 + 16) / (12 * (8 + 12)),
    ),
    "ConvLSTM2D": (
        lambda: layers.ConvLSTM2D(12, 3, **LOW),
        (4, 8, 8, 8),
        "units 12",
        16 * (8 + 16) / (12 * (8 + 12)),
    ),
}


@pytest.mark.parametrize("make, shape, sizes, times", ALIGNMENT.values(), ids=ALIGNMENT)
def test_alignment(make, shape, sizes, times):
    (finding,) = found(model_of(make(), shape=shape), "alignment")
    assert finding.severity == "note"
    assert finding.reason.startswith(f"{sizes}: not a multiple of 8")
    assert f" {100 * (times - 1):.1f} % more multiplications" in finding.fix


def test_alignment_of_attention():
    inputs = keras.Input((4, 12))
    attention = layers.MultiHeadAttention(3, 5, value_dim=8, name="mha", **LOW)
    model = keras.Model(inputs, attention(inputs, inputs), name="net")
    (finding,) = found(model, "alignment")
    assert finding.layer == "net/mha"
    assert set(finding.reason.split(":")[0].split(", ")) == {
        "query features 12",
        "key features 12",
        "key dim 5",
        "value features 12",
        "output features 12",
    }
    times = 4 * 16 * 8 / (2 * 12 * 5 + 2 * 12 * 8)
    assert f" {100 * (times - 1):.1f} % more" in finding.fix


def test_batch_size():
    (finding,) = found(model_of(dense()), "alignment", 100)
    assert finding.layer == "net" and "batch size 104 it takes 4.0 %" in finding.fix
    assert not found(model_of(dense()), "alignment", 104)
    assert not found(model_of(dense(dtype="float32")), "alignment", 100)


def test_float8_takes_multiples_of_16():
    head = dense(24)
    model = model_of(head, shape=(16,))
    assert not found(model, "alignment", 16)
    head.quantize("float8")
    in_features, batch = found(model, "alignment", 24)
    assert "units 24: not a multiple of 16" in in_features.reason
    assert "batch size 32" in batch.fix


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dense(10),
        layers.DepthwiseConv1D(3, **LOW),
        layers.Conv1D(3, 3, groups=3, **LOW),
    ],
)
def test_what_is_on_no_tensor_core(layer):
    shape = (3,) if isinstance(layer, layers.Dense) else (8, 3)
    assert not found(model_of(layer, shape=shape), "alignment")


WITHOUT_PRODUCTS = {
    "AdditiveAttention": "it has no weights to multiply with",
    "Attention": "it has no weights to multiply with",
    "DepthwiseConv1D": "it is on no tensor core",
    "DepthwiseConv2D": "it is on no tensor core",
}


def model_with(cls):
    """Return a model of one layer of this class, with 3 features in and out."""
    name, rank = cls.__name__, [int(digit) for digit in cls.__name__ if digit.isdigit()]
    if name.endswith("Attention"):
        inputs = keras.Input((8, 3))
        if name in WITHOUT_PRODUCTS:
            return keras.Model(inputs, cls(**LOW)([inputs, inputs]))
        args = (2, 3) if name == "MultiHeadAttention" else (3, 2, 2)
        return keras.Model(inputs, cls(*args, **LOW)(inputs, inputs))
    if name.endswith("Cell"):
        return model_of(layers.RNN(cls(3, **LOW), **LOW), shape=(4, 3))
    if name == "EinsumDense":
        return model_of(cls("ab,bc->ac", 3, **LOW), shape=(3,))
    if name == "Dense":
        return model_of(cls(3, **LOW), shape=(3,))
    if not rank:
        return model_of(cls(3, **LOW), shape=(4, 3))
    shape = (8,) * (rank[0] + ("LSTM" in name)) + (3,)
    args = (3,) if name.startswith("Depthwise") else (3, 3)
    return model_of(cls(*args, **LOW), shape=shape)


@pytest.mark.parametrize("cls", precision_lists.ALLOW, ids=lambda cls: cls.__name__)
def test_every_layer_with_products_in_low_precision(cls):
    findings = found(model_with(cls), "alignment")
    assert bool(findings) is (cls.__name__ not in WITHOUT_PRODUCTS)


# The model itself.


def test_nothing_is_changed():
    policy = keras_mp.Policy("mixed_float16", float32=["nothing"])
    inputs = keras.Input((4, 8))
    x = layers.MultiHeadAttention(2, 5, **LOW)(inputs, inputs)
    x = layers.Softmax(**LOW)(x)
    x = layers.Dense(8, "elu", activity_regularizer="l2", dtype=policy)(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    model(np.ones((1, 4, 8)))

    def state():
        every = model._flatten_layers()
        return [
            {name: id(value) for name, value in vars(layer).items()}
            | {"nodes": len(layer._outbound_nodes), "losses": layer.losses}
            for layer in every
        ]

    before = state()
    assert keras_mp.lint(model, 100)
    assert state() == before


def test_a_finding_is_one_line():
    findings = keras_mp.lint(model_of(dense(10, "softmax")), 100)
    assert findings
    for finding in findings:
        line = str(finding)
        assert "\n" not in line
        for part in finding:
            assert part in line


@pytest.mark.parametrize(
    "model, batch_size, error, message",
    [
        (layers.Dense(8), None, TypeError, "needs a Keras model.*Sequential"),
        (keras.Sequential([layers.Dense(8)]), None, ValueError, "not built.*Input"),
        (model_of(dense()), "8", TypeError, "needs an integer"),
        (model_of(dense()), True, TypeError, "needs an integer"),
        (model_of(dense()), 0, ValueError, "at least one"),
    ],
)
def test_bad_input(model, batch_size, error, message):
    with pytest.raises(error, match=message):
        keras_mp.lint(model, batch_size)


# The command.


def saved(tmp_path, model):
    path = tmp_path / "model.keras"
    model.save(path)
    return str(path)


def test_command_on_a_file_of_keras(capsys, tmp_path):
    model = model_of(dense(10, "softmax"))
    model.compile("adam", "mse")
    path = saved(tmp_path, model)
    assert cli.main(["lint", path, "--batch-size", "100"]) == 1
    said = capsys.readouterr().out
    assert said.count("net/head") == 4 and "batch size 104" in said
    assert said.endswith("errors: 1, warnings: 2, notes: 2\n")


def test_command_on_a_file_of_keras_mp(capsys, tmp_path):
    """Its guards are not in the file, and come back when it is loaded."""
    model = model_of(dense(10, "softmax"))
    keras_mp.compile(model, "adam", "categorical_crossentropy")
    assert cli.main(["lint", saved(tmp_path, model)]) == 0
    assert capsys.readouterr().out.endswith("errors: 0, warnings: 0, notes: 1\n")


def test_command_reports_rules_and_does_not_warn(capsys, tmp_path):
    policy = keras_mp.Policy("mixed_bfloat16", float32=["nothing"])
    assert cli.main(["lint", saved(tmp_path, model_of(dense(dtype=policy)))]) == 1
    assert "rule 'nothing' matches no layer" in capsys.readouterr().out


def test_command_in_json(capsys, tmp_path):
    path = saved(tmp_path, model_of(dense(10, dtype="mixed_bfloat16")))
    assert cli.main(["lint", path, "--json"]) == 1
    read = json.loads(capsys.readouterr().out)
    findings = [keras_mp.Finding(**finding) for finding in read]
    assert [f.rule for f in findings] == ["head", "alignment"]
    clean = saved(tmp_path, model_of(dense(dtype="float32")))
    assert cli.main(["lint", clean, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_command_refuses_what_is_no_model(capsys, tmp_path):
    with pytest.warns(UserWarning, match="not yet been built"):
        unbuilt = saved(tmp_path, keras.Sequential([layers.Dense(8)]))
    empty = tmp_path / "empty.keras"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("other", "")
    for path, expected in (
        (tmp_path / "absent.keras", "no such file"),
        (empty, "a model that Keras can load by itself"),
        (unbuilt, "not built"),
    ):
        assert cli.main(["lint", str(path)]) == 2
        done = capsys.readouterr()
        assert expected in done.err and not done.out
    with pytest.raises(SystemExit) as error:
        cli.main(["lint", unbuilt, "--batch-size", "0"])
    assert error.value.code == 2


class Unregistered(layers.Dense):
    pass


def test_command_on_a_class_that_is_not_registered(capsys, tmp_path):
    path = saved(tmp_path, model_of(Unregistered(8)))
    assert cli.main(["lint", path]) == 2
    assert "keras_mp.lint" in capsys.readouterr().err
