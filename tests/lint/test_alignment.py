"""Lint finds sizes that tensor cores pad, and says what the padding costs."""

import keras
import pytest
from keras import layers
from support.lint import LOW, dense, found, model_of

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
