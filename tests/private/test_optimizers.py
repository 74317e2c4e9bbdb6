"""What Keras keeps private of optimizers holds on the Keras at hand."""

import keras
import numpy as np
import tensorflow as tf

from keras_mp import private


def test_an_optimizer_updates_as_what_it_inherits_from():
    class Own(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            pass

    class Writes(keras.optimizers.Adam):
        def assign_sub(self, variable, value):
            super().assign_sub(variable, value)

    adam = keras.optimizers.Adam
    assert private.optimizers.updates_as(keras.optimizers.AdamW(), adam)
    assert not private.optimizers.updates_as(keras.optimizers.SGD(), adam)
    assert not private.optimizers.updates_as(Own(), adam)
    assert not private.optimizers.updates_as(Writes(), adam)
    patched = keras.optimizers.Adam()
    patched.update_step = lambda *arguments: None
    assert not private.optimizers.updates_as(patched, adam)


def test_slots_are_those_of_the_variable():
    weights = [keras.Variable(np.ones(size)) for size in (2, 3)]
    optimizer = keras.optimizers.Adam()
    optimizer.build(weights)
    (momentum, velocity) = private.optimizers.slots(
        optimizer, weights[1].value, ["_momentums", "_velocities"]
    )
    assert momentum is optimizer._momentums[1].value
    assert velocity is optimizer._velocities[1].value


def test_places_are_those_among_the_variables_that_it_was_built_with():
    weights = [keras.Variable(np.ones(size)) for size in (2, 3, 4)]
    optimizer = keras.optimizers.Adam()
    optimizer.build(weights)
    built_with = private.optimizers.variables_of(optimizer)
    assert list(map(id, built_with)) == list(map(id, weights))
    some = [weights[2], weights[0].value]
    assert private.optimizers.places_of(optimizer, some) == [2, 0]


def test_updates_go_through_what_was_given():
    weight = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([weight])
    calls = []

    def update(keras_update, gradients, variables, learning_rate):
        calls.append("all")
        keras_update([-gradient for gradient in gradients], variables, learning_rate)

    def update_one(update_step, gradient, variable, learning_rate):
        calls.append("one")
        update_step(gradient, variable, learning_rate)

    with private.optimizers.updating_by(optimizer, update, update_one):
        optimizer.apply([tf.constant([1.0, 1.0])])
    assert calls == ["all", "one"]
    np.testing.assert_array_equal(weight.numpy(), [1.5, 2.5])
    optimizer.apply([tf.constant([1.0, 1.0])])
    np.testing.assert_array_equal(weight.numpy(), [1.0, 2.0])
