"""A model and data of a user's own."""

import keras
import numpy as np
import pytest
from support.own_files import save_data, save_model

from keras_mp import terminal
from keras_mp.compare import custom, tasks


def load_own(tmp_path, **options):
    job = tasks.Job("custom", 5, 32, data=save_data(tmp_path / "d.npz"), **options)
    return job, custom.load_data(job)


def test_own_model_keeps_its_weights_loss_and_optimizer(tmp_path):
    path = save_model(tmp_path / "m.keras", policy="mixed_float16")
    job, data = load_own(tmp_path, model=path)
    assert len(data.x) == 40 and len(data.x_val) == 10
    float32 = custom.build(job, "float32", data)
    assert isinstance(float32.optimizer, keras.optimizers.SGD)
    assert float32.optimizer.momentum == 0.9 and float32.optimizer.iterations == 0
    mixed = custom.build(job, "mixed_float16", data)
    assert isinstance(mixed.optimizer.inner_optimizer, keras.optimizers.SGD)
    for a, b in zip(float32.weights, mixed.weights, strict=True):
        assert np.array_equal(a, b)


def test_options_replace_what_the_model_was_compiled_with(tmp_path):
    options = {"loss": "mse", "optimizer": "adam", "learning_rate": 0.25}
    path = save_model(tmp_path / "m.keras", outputs=1)
    job, data = load_own(tmp_path, model=path, **options)
    model = custom.build(job, "float32", data)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    "compiled, features, options, expected",
    [
        (False, 4, {}, "add --loss"),
        (False, 4, {"loss": "nonsense"}, "--loss nonsense"),
        (True, 4, {"optimizer": "nonsense"}, "--optimizer nonsense"),
        (True, 5, {}, "reshape the arrays"),
    ],
)
def test_own_models_that_cannot_be_trained(
    tmp_path, compiled, features, options, expected
):
    model = save_model(tmp_path / "m.keras", compiled=compiled)
    data = save_data(tmp_path / "d.npz", features=features)
    job = tasks.Job("custom", 5, 32, model=model, data=data, **options)
    with pytest.raises(terminal.UserError, match=expected):
        custom.build(job, "float32", custom.load_data(job))
