"""What Keras keeps private of layers holds on the Keras at hand."""

import keras
import numpy as np

import keras_mp
from keras_mp import private


def test_sublayers_finds_what_layers_hold():
    dense, act = keras.layers.Dense(2), keras.layers.Activation("relu")
    assert private.layers.sublayers(keras.Sequential([dense, act])) == [dense, act]
    assert private.layers.sublayers(keras.layers.TimeDistributed(dense)) == [dense]
    lstm = keras.layers.LSTM(2)
    assert private.layers.sublayers(lstm) == [lstm.cell]
    assert private.layers.sublayers(dense) == []


def test_sublayers_of_attention():
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer(np.ones((1, 4, 5)), np.ones((1, 4, 5)))
    kinds = [type(inner).__name__ for inner in private.layers.sublayers(layer)]
    assert kinds.count("EinsumDense") == 4
    assert kinds.count("Softmax") == 1


def test_sublayers_is_a_list_of_its_own():
    model = keras.Sequential([keras.layers.Dense(2)])
    private.layers.sublayers(model).clear()
    assert len(private.layers.sublayers(model)) == 1


def test_walk_finds_every_layer_once():
    shared = keras.layers.Dense(2)
    inner = keras.Sequential([shared, keras.layers.Softmax()])
    outer = keras.Sequential([inner, shared])
    found = private.layers.walk(outer)
    assert found[0] is outer
    assert set(found) == {outer, inner, shared, inner.layers[1]}
    assert len(found) == len(set(found))


def test_set_layer_policy_changes_one_layer_of_a_shared_map():
    shared = keras.dtype_policies.DTypePolicyMap(
        default_policy=keras.DTypePolicy("mixed_float16")
    )
    first, second = (keras.layers.Dense(2, dtype=shared) for _ in range(2))
    private.layers.set_layer_policy(first, keras.DTypePolicy("float32"))
    assert first.compute_dtype == first(np.ones((1, 2))).dtype.name == "float32"
    assert second.compute_dtype == second(np.ones((1, 2))).dtype.name == "float16"


def test_hook_sees_name_and_path_and_can_be_put_back(monkeypatch):
    base = keras.layers.Layer
    unhooked = keras.Operation._setattr_hook
    monkeypatch.setattr(base, "_setattr_hook", unhooked)
    seen, given = [], []

    def resolve(layer, policy, path, attribute):
        assert attribute == "_dtype_policy"
        seen.append((layer, policy.name, path))
        return keras.DTypePolicy("bfloat16") if path == "model/inside" else policy

    def assigned(layer, name, value):
        given.append((layer, name))
        return 7 if name == "units" else value

    private.layers.layer_hook(resolve, lambda layer, sublayer: None, assigned)
    layer = keras.layers.Dense(2, name="inside")
    assert (layer, "float32", "inside") in seen
    assert layer.compute_dtype == "float32"
    keras.Sequential([keras.Input((3,)), layer], name="model")
    assert (layer, "float32", "model/inside") in seen
    assert layer.compute_dtype == layer.kernel.dtype == "bfloat16"
    assert (layer, "built") in given and layer.units == 7


def test_hook_leaves_other_attributes_and_tracking_alone():
    class Holder(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=())
            self.child = keras.layers.Dense(1)
            self.children = [keras.layers.Dense(1)]
            self.text = "text"

    holder = Holder()
    assert len(holder.weights) == 1
    assert private.layers.sublayers(holder) == [holder.child, *holder.children]
    assert holder.text == "text"


def test_policies_need_no_path_on_layers_that_keras_gives_none():
    policy = keras_mp.Policy("mixed_float16", float32=["quiet"])
    layer = keras.layers.Activation("relu", name="quiet", dtype=policy)
    layer(np.ones((1, 2)))
    assert layer.path is None  # the reason for the hook
    assert layer.compute_dtype == "float32"
