"""Attributes for a while, put back whatever happens."""

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import private


def test_attributes_that_were_not_there_are_gone_afterwards():
    owner = keras.optimizers.SGD()
    with pytest.raises(KeyError):
        with private.attributes.attributes_for_now([(owner, {"extra": 1})]):
            assert owner.extra == 1
            raise KeyError
    assert not hasattr(owner, "extra")


def test_attributes_for_now_are_put_back_after_an_error():
    policy = keras_mp.Policy("mixed_float16", float32=["never"])
    layer = keras.layers.Dense(2, dtype=policy)
    own, losses = layer._dtype_policy, layer._losses
    changes = [
        *private.attributes.policy_as(layer, keras.DTypePolicy("float32")),
        *private.attributes.losses_apart(layer),
    ]
    with pytest.raises(RuntimeError), private.attributes.attributes_for_now(changes):
        assert layer(np.ones((1, 2))).dtype == "float32"
        layer.add_loss(keras.ops.ones(()))
        raise RuntimeError
    assert layer._dtype_policy is own and layer._losses is losses and not losses
    assert layer(np.ones((1, 2))).dtype == "float16"


def test_the_dtype_of_an_input_is_the_one_it_is_cast_to():
    inputs = keras.Input((1,), dtype="float16")
    model = keras.Model(inputs, keras.layers.Identity(dtype="float32")(inputs))
    x = np.full((1, 1), 2049, "float32")
    with private.attributes.attributes_for_now(
        private.attributes.input_in(model.layers[0], "float32")
    ):
        assert model(x) == 2049
    assert model(x) == 2048
    other = keras.layers.InputLayer((1,), dtype="int32")
    assert list(private.attributes.input_in(other, "float32")) == []
